// One conference as a participant sees it: the request to the focus, the room, presence, and the Jingle
// session with the focus. What it learns it tells its handler; it draws nothing.

import { NS, attr, child, el } from './xml';
import { Media, MediaHandler } from './media';
import { Stream } from './stream';

/** What /config.js leaves on the page; a stock Jitsi Meet reads the same object. */
export interface Config {
  hosts: { domain: string; muc: string; focus?: string };
  websocket: string;
  /** Names of codecs, the best first. */
  videoQuality?: { codecPreferenceOrder?: string[] };
}

export interface Participant { id: string; name: string; muted: Record<string, boolean> }

export interface ConferenceHandler extends MediaHandler {
  joined(id: string): void;
  participant(p: Participant): void;
  left(id: string): void;
  /** A new session with a bridge begins; tracks of the former one are dead. */
  session(media: Media): void;
  interrupted(lost: boolean): void;
  ended(why: string): void;
}

const FEATURES = ['http://jabber.org/protocol/caps', 'http://jabber.org/protocol/disco#info', 'http://jitsi.org/json-encoded-sources',
  'http://jitsi.org/receive-multiple-video-streams', 'http://jitsi.org/source-name', 'http://jitsi.org/ssrc-rewriting-1',
  'http://jitsi.org/tcc', 'urn:ietf:rfc:4588', 'urn:xmpp:jingle:1', 'urn:xmpp:jingle:apps:dtls:0', 'urn:xmpp:jingle:apps:rtp:1',
  'urn:xmpp:jingle:apps:rtp:audio', 'urn:xmpp:jingle:apps:rtp:video', 'urn:xmpp:jingle:transports:dtls-sctp:1',
  'urn:xmpp:jingle:transports:ice-udp:1'];
if (RTCRtpSender.getCapabilities('audio')?.codecs.some(c => c.mimeType === 'audio/red')) FEATURES.push('http://jitsi.org/opus-red');
/** What a shard says that does not know a room: to stock clients, too, it means to ask for the conference and join again. */
const VANISHED = 'Room creation is restricted';
const NODE = 'https://plenum.invalid/web';

export class Conference {
  private readonly stream: Stream;
  private readonly room: string;
  private id = '';
  private ver = '';
  private sid = '';
  private media?: Media;
  private sources: Record<string, { muted: boolean; videoType?: string }> = {};
  /** Codecs that this browser sends, the best first, and those that each of the others can show. */
  private readonly codecs: string[];
  private readonly shown = new Map<string, string[]>();
  private joined = false;
  private rejoins = 0;

  constructor(private readonly config: Config, room: string, private name: string, private readonly local: MediaStream,
              private readonly handler: ConferenceHandler) {
    this.room = `${room.toLowerCase()}@${config.hosts.muc}`;
    const able = RTCRtpSender.getCapabilities('video')?.codecs.map(c => c.mimeType.slice('video/'.length).toLowerCase()) ?? [];
    this.codecs = (config.videoQuality?.codecPreferenceOrder ?? ['vp8']).map(c => c.toLowerCase()).filter(c => able.includes(c));
    const url = new URL(config.websocket, location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    url.searchParams.set('room', room.toLowerCase());
    this.stream = new Stream(url.href, config.hosts.domain, {
      online: jid => void this.enter(jid).catch(e => this.end('the room could not be entered: ' + e.message)),
      stanza: s => this.receive(s),
      interrupted: lost => handler.interrupted(lost),
      failed: why => this.end(why),
    });
  }

  async start(): Promise<void> {
    this.ver = await capabilityHash();
    this.stream.connect();
  }

  mute(kind: 'audio' | 'video', muted: boolean): void {
    const source = this.sources[`${this.id}-${kind[0]}0`];
    if (source) source.muted = muted;
    this.present();
  }

  rename(name: string): void {
    this.name = name;
    this.present();
  }

  leave(): void {
    if (this.joined) this.stream.send(el(NS.client, 'presence', { to: `${this.room}/${this.id}`, type: 'unavailable' }));
    this.media?.close();
    this.stream.close();
  }

  private async enter(jid: string): Promise<void> {
    this.id = jid.split('@')[0].split('-')[0];
    const focus = this.config.hosts.focus ?? `focus.${this.config.hosts.domain}`;
    for (let wait = 1000; ; wait = Math.min(wait * 2, 60_000)) {
      const answer = await this.stream.iq('set', focus, el(NS.focus, 'conference', { room: this.room, 'machine-uid': machine() }));
      if (attr(child(answer, 'conference'), 'ready') === 'true') break;
      await new Promise(done => setTimeout(done, wait));
    }
    this.present(el(NS.muc, 'x'));
  }

  /** Sends our whole presence: receivers replace what they had. */
  private present(join: Element | null = null): void {
    if (!this.id || (!this.joined && !join)) return;
    this.stream.send(el(NS.client, 'presence', { to: `${this.room}/${this.id}` }, join,
      el(NS.caps, 'c', { hash: 'sha-1', node: NODE, ver: this.ver }),
      el(NS.client, 'SourceInfo', {}, JSON.stringify(this.sources)),
      el(NS.client, 'jitsi_participant_codecList', {}, this.codecs.join(',')),
      el(NS.nick, 'nick', {}, this.name)));
  }

  /** The best codec that everybody can show; who does not say has VP8. */
  private codec(): string {
    return this.codecs.find(c => [...this.shown.values()].every(s => s.includes(c))) ?? 'vp8';
  }

  private receive(s: Element): void {
    switch (s.localName) {
      case 'presence': return this.presence(s);
      case 'iq': return this.request(s);
    }
  }

  private presence(p: Element): void {
    const id = attr(p, 'from').split('/')[1];
    const type = attr(p, 'type');
    if (type === 'error' && id === this.id && child(p, 'error')?.textContent === VANISHED && this.rejoins++ < 3) {
      this.media?.close();
      return void this.enter(this.stream.jid).catch(e => this.end('the room could not be entered again: ' + e.message));
    }
    if (type === 'error') return this.end('the room refused us: ' + (child(p, 'error')?.firstElementChild?.localName ?? 'error'));
    if (type === 'unavailable') {
      if (id === this.id) this.end('we were removed from the room');
      else if (id !== 'focus') {
        this.handler.left(id);
        this.shown.delete(id);
        this.media?.prefer(this.codec());
      }
      return;
    }
    if (id === 'focus') return;
    if (id === this.id) {
      if (!this.joined) {
        this.joined = true;
        this.handler.joined(id);
      }
      return;
    }
    this.shown.set(id, (child(p, 'jitsi_participant_codecList')?.textContent || 'vp8').split(','));
    this.media?.prefer(this.codec());
    const info: Record<string, { muted?: boolean }> = JSON.parse(child(p, 'SourceInfo')?.textContent || '{}');
    this.handler.participant({ id, name: child(p, 'nick')?.textContent || 'Guest',
      muted: Object.fromEntries(['a0', 'v0'].map(s => [`${id}-${s}`, info[`${id}-${s}`]?.muted !== false])) });
  }

  private request(iq: Element): void {
    const payload = iq.firstElementChild;
    if (payload?.namespaceURI === NS.disco) {
      return this.stream.reply(iq, el(NS.disco, 'query', { node: attr(payload, 'node') || undefined }, ...FEATURES.map(f => el(NS.disco, 'feature', { var: f }))));
    }
    if (payload?.namespaceURI !== NS.jingle || attr(iq, 'from') !== `${this.room}/focus`) return this.stream.refuse(iq, 'service-unavailable');
    const action = attr(payload, 'action');
    if (action !== 'session-initiate' && attr(payload, 'sid') !== this.sid) return this.stream.refuse(iq, 'item-not-found');
    this.stream.reply(iq);
    if (action === 'session-initiate') void this.accept(payload, attr(iq, 'from')).catch(e => this.end('the call could not be set up: ' + e.message));
    if (action === 'session-terminate') this.hangUp();
  }

  private async accept(offer: Element, focus: string): Promise<void> {
    this.hangUp();
    this.sid = attr(offer, 'sid');
    const media = this.media = new Media(offer, this.id, this.codec(), this.handler);
    this.handler.session(media);
    const accept = await media.accept(this.local, this.stream.jid);
    await this.stream.iq('set', focus, accept);
    for (const t of this.local.getTracks()) {
      this.sources[`${this.id}-${t.kind[0]}0`] = { muted: !t.enabled };
    }
    this.present();
  }

  private hangUp(): void {
    this.media?.close();
    this.media = undefined;
    this.sid = '';
  }

  private end(why: string): void {
    this.hangUp();
    this.stream.close();
    this.handler.ended(why);
  }
}

/** The verification string of XEP-0115 for our features (no identities). */
async function capabilityHash(): Promise<string> {
  const text = [...FEATURES].sort().map(f => f + '<').join('');
  const hash = await crypto.subtle.digest('SHA-1', new TextEncoder().encode(text));
  return btoa(String.fromCharCode(...new Uint8Array(hash)));
}

/** A random name of this browser that stays, as the conference request wants one. */
function machine(): string {
  const id = localStorage.getItem('plenum-machine') ?? crypto.randomUUID().replaceAll('-', '');
  localStorage.setItem('plenum-machine', id);
  return id;
}
