// One media session with a bridge: peer connection, bridge channel, and the sources the bridge maps for us.

import { attr, child, children } from './xml';
import { Mapping, Section, remoteOffer, sessionAccept, withSimulcast } from './sdp';

/**
 * Heights at which the camera is sent, lowest first, when it starts at 720 lines: each with three frame rates, and
 * none built on another, which is said because VP9 and AV1 would have one stream of many layers otherwise.
 */
const ENCODINGS: (RTCRtpEncodingParameters & { scalabilityMode: string })[] = [
  { scaleResolutionDownBy: 4, maxBitrate: 200_000, scalabilityMode: 'L1T3' },
  { scaleResolutionDownBy: 2, maxBitrate: 500_000, scalabilityMode: 'L1T3' },
  { scaleResolutionDownBy: 1, maxBitrate: 1_500_000, scalabilityMode: 'L1T3' },
];

export interface MediaHandler {
  /** A remote track plays source of owner; the same track may later be handed to another source. */
  track(mapping: Mapping, track: MediaStreamTrack): void;
  dominant(endpoint: string): void;
  connectivity(endpoint: string, active: boolean): void;
  channelOpen(): void;
}

export class Media {
  private readonly pc = new RTCPeerConnection();
  private readonly layers = new Map<number, number[]>();
  private sections: Section[] = [];
  private readonly tracks = new Map<string, MediaStreamTrack>(); // by mid
  private channel?: { send(text: string): void; close(): void };
  private version = 1;
  private work: Promise<void> = Promise.resolve();
  private camera?: RTCRtpSender;
  private lines = -1; // of the camera that somebody takes, as the bridge says; -1 is no limit

  /** The camera is sent with codec, in lower case, if the offer has it. */
  constructor(private readonly offer: Element, private readonly id: string, private codec: string, private readonly handler: MediaHandler) {
    this.pc.ontrack = e => this.arrived(e);
  }

  /** Answers the offer with the local tracks and returns the session-accept. */
  async accept(stream: MediaStream, responder: string): Promise<Element> {
    this.openChannel();
    for (const t of stream.getTracks()) {
      const sender = this.pc.addTrack(t, stream);
      if (t.kind === 'video') this.camera = sender;
    }
    const answered = this.negotiate().then(() => this.setCamera());
    this.work = answered.catch(() => {}); // it is ours to tell, and what the channel brings meanwhile comes after it
    await answered;
    return sessionAccept(this.offer, this.pc.localDescription!.sdp, this.id, responder);
  }

  close(): void {
    this.channel?.close();
    this.pc.close();
  }

  /** Tells the bridge how high each remote source is shown; sources that are not named get 180 lines. */
  want(heights: Record<string, number>, onStage: string[]): void {
    const constraints = Object.fromEntries(Object.entries(heights).map(([name, maxHeight]) => [name, { maxHeight }]));
    this.tell({ colibriClass: 'ReceiverVideoConstraints', lastN: -1, onStageSources: onStage, defaultConstraints: { maxHeight: 180 }, constraints });
  }

  /** Sends the camera with another codec from now on. */
  prefer(codec: string): void {
    if (codec === this.codec) return;
    this.codec = codec;
    this.next('the codec could not be changed', () => this.negotiate());
  }

  stats(): Promise<RTCStatsReport> { return this.pc.getStats(); }

  /** Changes of the connection are done one after the other: two at once, and the browser refuses one. */
  private next(failure: string, step: () => Promise<void>): void {
    this.work = this.work.then(step).catch(e => console.error(`plenum: ${failure}:`, e));
  }

  /** One round of remote and local description. */
  private async negotiate(): Promise<void> {
    if (this.pc.signalingState === 'closed') return;
    const sdp = remoteOffer(this.offer, this.sections, this.codec, this.version++);
    await this.pc.setRemoteDescription({ type: 'offer', sdp });
    const answer = await this.pc.createAnswer();
    await this.pc.setLocalDescription({ type: 'answer', sdp: 'chrome' in window ? withSimulcast(answer.sdp!, this.layers) : answer.sdp });
  }

  /** Sets the encodings of the camera, and stops those that nobody takes. */
  private async setCamera(): Promise<void> {
    const parameters = this.camera?.getParameters();
    if (!parameters?.encodings.length) return;
    const height = this.camera!.track?.getSettings().height ?? 720;
    let below = true; // the lowest encoding at or above the limit is still taken
    parameters.encodings.forEach((e, i) => {
      if (parameters.encodings.length === ENCODINGS.length) Object.assign(e, ENCODINGS[i]);
      e.active = this.lines < 0 || (this.lines > 0 && below);
      if (height / (e.scaleResolutionDownBy ?? 1) >= this.lines) below = false;
    });
    await this.camera!.setParameters(parameters);
  }

  private arrived(e: RTCTrackEvent): void {
    const mid = e.transceiver.mid!;
    const section = this.sections.find(s => s.mid === mid);
    if (!section) return;
    this.tracks.set(mid, e.track);
    this.handler.track(section.mapping, e.track);
  }

  private map(kind: 'audio' | 'video', mapped: Mapping[]): void {
    this.next('remote sources could not be set up', async () => {
      let fresh = false;
      for (const mapping of mapped) {
        const known = this.sections.find(s => s.mapping.ssrc === mapping.ssrc);
        if (known) {
          known.mapping = mapping;
          const track = this.tracks.get(known.mid);
          if (track) this.handler.track(mapping, track);
          continue;
        }
        this.sections.push({ mid: mapping.mid || String(3 + this.sections.length), kind, mapping });
        fresh = true;
      }
      if (fresh) await this.negotiate();
    });
  }

  /** The data channel where the offer has one, the WebSocket otherwise. */
  private openChannel(): void {
    const contents = children(this.offer, 'content');
    if (contents.some(c => attr(c, 'name') === 'data')) {
      const channel = this.pc.createDataChannel('JVB data channel', { protocol: 'http://jitsi.org/protocols/colibri' });
      channel.onopen = () => this.opened(channel);
      channel.onmessage = m => this.hear(m.data);
      return;
    }
    const url = attr(child(child(contents[0], 'transport'), 'web-socket'), 'url');
    if (!url) return;
    const socket = new WebSocket(url);
    socket.onopen = () => this.opened(socket);
    socket.onmessage = m => this.hear(m.data);
  }

  private opened(channel: { send(text: string): void; close(): void }): void {
    this.channel = channel;
    if (this.camera) this.tell({ colibriClass: 'SourceVideoTypeMessage', sourceName: `${this.id}-v0`, videoType: 'camera' });
    this.handler.channelOpen();
  }

  private tell(message: object): void { this.channel?.send(JSON.stringify(message)); }

  private hear(text: string): void {
    const m = JSON.parse(text);
    switch (m.colibriClass) {
      case 'AudioSourcesMap': return this.map('audio', m.mappedSources);
      case 'VideoSourcesMap': return this.map('video', m.mappedSources);
      case 'DominantSpeakerEndpointChangeEvent': return this.handler.dominant(m.dominantSpeakerEndpoint);
      case 'EndpointConnectivityStatusChangeEvent': return this.handler.connectivity(m.endpoint, m.active === 'true');
      case 'SenderSourceConstraints':
        this.lines = m.maxHeight;
        return this.next('the camera could not be set', () => this.setCamera());
    }
  }
}
