// The page: joins the room that the address names and shows who is there.

import { Conference, Config, Participant } from './conference';
import { Media } from './media';
import { Mapping } from './sdp';

declare global { interface Window { config: Config; plenum: Page } }

const $ = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

/** One participant on the stage. */
class Tile {
  readonly figure = document.createElement('figure');
  readonly video = document.createElement('video');
  private readonly audio = document.createElement('audio');
  private readonly caption = document.createElement('figcaption');

  constructor(id: string, own: boolean) {
    this.figure.className = 'tile novideo' + (own ? ' own' : '');
    this.figure.dataset.endpoint = id;
    this.figure.style.margin = '0';
    for (const m of [this.video, this.audio]) m.autoplay = true;
    this.video.playsInline = true;
    this.video.muted = true; // sound comes from the audio element, so that pictures may start without a click
    if (own) this.audio.muted = true;
    this.figure.append(this.video, this.audio, this.caption);
    $('stage').append(this.figure);
    layout();
  }

  name(text: string): void { this.caption.textContent = text; }
  play(track: MediaStreamTrack): void { this[track.kind as 'video' | 'audio'].srcObject = new MediaStream([track]); }
  mark(audioMuted: boolean, videoMuted: boolean): void {
    this.figure.classList.toggle('silent', audioMuted);
    this.figure.classList.toggle('novideo', videoMuted);
  }
  remove(): void { this.figure.remove(); layout(); }
}

function layout(): void {
  const stage = $('stage');
  stage.style.setProperty('--columns', String(Math.max(1, Math.ceil(Math.sqrt(stage.childElementCount)))));
}

/** What is on the page; tests and the curious read it as window.plenum. */
class Page {
  id = '';
  readonly tiles = new Map<string, Tile>();
  /** Milliseconds since the page began: connect, joined, and the first remote picture. */
  readonly marks: Record<string, number> = {};
  media?: Media;
  private readonly people = new Map<string, Participant>();
  private own?: Tile;
  private local = new MediaStream();
  private conference?: Conference;

  constructor(private readonly room: string) {}

  async start(): Promise<void> {
    const local = await capture();
    const name = $<HTMLInputElement>('name');
    name.value = localStorage.getItem('plenum-name') ?? 'Guest';
    this.own = new Tile('me', true);
    this.own.name(name.value + ' (you)');
    for (const t of local.getVideoTracks()) this.own.play(t);
    this.local = local;
    this.markOwn();
    this.mark('connect');
    const conference = this.conference = new Conference(window.config, this.room, name.value, local, {
      joined: id => { this.id = id; this.mark('joined'); notice(''); },
      participant: p => this.show(p),
      left: id => { this.people.delete(id); this.tiles.get(id)?.remove(); this.tiles.delete(id); this.ask(); },
      session: media => { this.media = media; },
      track: (m, track) => this.track(m, track),
      dominant: id => this.tiles.forEach((t, who) => t.figure.classList.toggle('speaking', who === id)),
      connectivity: (id, active) => this.tiles.get(id)?.figure.classList.toggle('lost', !active),
      channelOpen: () => this.ask(),
      interrupted: lost => notice(lost ? 'The connection is interrupted; trying again…' : ''),
      ended: why => this.over(`The call has ended: ${why}.`),
    });
    this.toggle('mic', 'audio', local.getAudioTracks());
    this.toggle('camera', 'video', local.getVideoTracks());
    name.onchange = () => {
      localStorage.setItem('plenum-name', name.value);
      this.own!.name(name.value + ' (you)');
      conference.rename(name.value);
    };
    $('leave').onclick = () => { conference.leave(); this.over('You have left.'); };
    $('again').onclick = () => location.reload();
    addEventListener('pagehide', () => conference.leave());
    addEventListener('resize', () => this.ask());
    $('controls').hidden = false;
    await conference.start();
  }

  private toggle(button: string, kind: 'audio' | 'video', tracks: MediaStreamTrack[]): void {
    const b = $(button);
    (b as HTMLButtonElement).disabled = !tracks.length;
    b.onclick = () => {
      const on = b.getAttribute('aria-pressed') !== 'true';
      b.setAttribute('aria-pressed', String(on));
      for (const t of tracks) t.enabled = on;
      this.conference!.mute(kind, !on);
      this.markOwn();
    };
  }

  private markOwn(): void {
    const silent = (tracks: MediaStreamTrack[]) => !tracks.some(t => t.enabled);
    this.own!.mark(silent(this.local.getAudioTracks()), silent(this.local.getVideoTracks()));
  }

  private show(p: Participant): void {
    this.people.set(p.id, p);
    let tile = this.tiles.get(p.id);
    if (!tile) this.tiles.set(p.id, tile = new Tile(p.id, false));
    tile.name(p.name);
    tile.mark(p.muted[`${p.id}-a0`], p.muted[`${p.id}-v0`]);
    this.ask();
  }

  private track(m: Mapping, track: MediaStreamTrack): void {
    const tile = this.tiles.get(m.owner);
    if (!tile) return;
    tile.play(track);
    if (track.kind === 'video' && !this.marks.picture) tile.video.requestVideoFrameCallback?.(() => this.mark('picture'));
  }

  /** Asks for as many lines of each camera as its tile shows. */
  private ask(): void {
    const heights: Record<string, number> = {};
    for (const [id, tile] of this.tiles) {
      const lines = tile.video.clientHeight * devicePixelRatio;
      heights[`${id}-v0`] = lines > 360 ? 720 : lines > 180 ? 360 : 180;
    }
    const only = this.tiles.size === 1 ? Object.keys(heights) : [];
    this.media?.want(heights, only);
  }

  private over(text: string): void {
    for (const t of this.local.getTracks()) t.stop();
    $('controls').hidden = true;
    $('stage').replaceChildren();
    notice(text);
    $('again').hidden = false;
  }

  private mark(name: string): void { this.marks[name] ??= performance.now(); }
}

/** Camera and microphone; with one of them, or none, one can still take part. */
async function capture(): Promise<MediaStream> {
  const video = { width: { ideal: 1280 }, height: { ideal: 720 } };
  for (const wish of [{ audio: true, video }, { audio: true }, { video }]) {
    try { return await navigator.mediaDevices.getUserMedia(wish); } catch { /* try with less */ }
  }
  return new MediaStream();
}

function notice(text: string): void {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

// The address is /ROOM or /TENANT/ROOM; what the tenant means is said by the config.js beside the room.
const room = decodeURIComponent(location.pathname.split('/').pop()!);
if (room) {
  window.plenum = new Page(room);
  window.plenum.start().catch(e => notice(`The call could not begin: ${e.message}.`));
} else {
  $('entry').hidden = false;
  $<HTMLFormElement>('entry').onsubmit = e => {
    e.preventDefault();
    location.assign('/' + encodeURIComponent($<HTMLInputElement>('room').value.trim()));
  };
}
