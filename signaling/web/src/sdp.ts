// Jingle on one side, the browser's session description on the other. The focus describes three contents
// (audio, video, data); every remote source that the bridge maps gets a media section of its own after them.

import { NS, attr, child, children, el } from './xml';

/** A remote source on the SSRCs that the bridge gave it for us. */
export interface Mapping { source: string; owner: string; ssrc: number; rtx?: number; videoType?: string; mid?: string }
export interface Section { mid: string; kind: 'audio' | 'video'; mapping: Mapping }

const MIDS: Record<string, string> = { audio: '0', video: '1', data: '2' };

/** The offer of the focus as SDP, with codec first for our camera, and one sendonly section for each remote source. */
export function remoteOffer(jingle: Element, sections: Section[], codec: string, version: number): string {
  const contents = children(jingle, 'content');
  const mids = [...contents.map(c => MIDS[attr(c, 'name')]), ...sections.map(s => s.mid)];
  const lines = ['v=0', `o=- 1 ${version} IN IP4 0.0.0.0`, 's=-', 't=0 0', `a=group:BUNDLE ${mids.join(' ')}`,
    'a=extmap-allow-mixed', 'a=msid-semantic: WMS *'];
  const own = bridgeSources(jingle);
  for (const c of contents) {
    const name = attr(c, 'name');
    if (name === 'data') lines.push(...data(c));
    else lines.push(...media(c, MIDS[name], 'sendrecv', codec), ...own.filter(s => s.kind === name).map(s => `a=ssrc:${s.ssrc} msid:${s.msid}`));
  }
  for (const s of sections) {
    const c = contents.find(c => attr(c, 'name') === s.kind)!;
    lines.push(...media(c, s.mid, 'sendonly'), ...sectionSources(s));
  }
  return lines.join('\r\n') + '\r\n';
}

/** The SSRCs on which the bridge itself speaks (feedback, probing). */
function bridgeSources(jingle: Element): { kind: string; ssrc: number; msid: string }[] {
  const text = child(jingle, 'json-message')?.textContent;
  const [video = [], , audio = []] = (text && JSON.parse(text).sources?.jvb) || [];
  const list = (kind: string, sources: { s: number; m?: string }[]) => sources.map(s => ({ kind, ssrc: s.s, msid: s.m ?? `mixed${kind} mixed${kind}0` }));
  return [...list('video', video), ...list('audio', audio)];
}

function media(content: Element, mid: string, direction: string, codec = ''): string[] {
  const d = child(content, 'description')!;
  const isFirst = (t: Element) => Number(attr(t, 'name').toLowerCase() === codec);
  const types = children(d, 'payload-type').sort((a, b) => isFirst(b) - isFirst(a));
  const lines = [`m=${attr(d, 'media')} 9 UDP/TLS/RTP/SAVPF ${types.map(t => attr(t, 'id')).join(' ')}`, 'c=IN IP4 0.0.0.0'];
  lines.push(...transport(content), `a=mid:${mid}`, `a=${direction}`, 'a=rtcp-mux', 'a=rtcp-rsize');
  for (const e of children(d, 'rtp-hdrext')) lines.push(`a=extmap:${attr(e, 'id')} ${attr(e, 'uri')}`);
  for (const t of types) {
    const id = attr(t, 'id'), channels = attr(t, 'channels');
    lines.push(`a=rtpmap:${id} ${attr(t, 'name')}/${attr(t, 'clockrate')}${Number(channels) > 1 ? '/' + channels : ''}`);
    const parameters = children(t, 'parameter').map(p => attr(p, 'name') ? `${attr(p, 'name')}=${attr(p, 'value')}` : attr(p, 'value'));
    if (parameters.length) lines.push(`a=fmtp:${id} ${parameters.join(';')}`);
    for (const f of children(t, 'rtcp-fb')) lines.push(`a=rtcp-fb:${id} ${attr(f, 'type')} ${attr(f, 'subtype')}`.trimEnd());
  }
  return lines;
}

function data(content: Element): string[] {
  const port = attr(child(child(content, 'transport'), 'sctpmap'), 'number') || '5000';
  return ['m=application 9 UDP/DTLS/SCTP webrtc-datachannel', 'c=IN IP4 0.0.0.0', ...transport(content), 'a=mid:2',
    `a=sctp-port:${port}`, 'a=max-message-size:262144'];
}

function transport(content: Element): string[] {
  const t = child(content, 'transport')!;
  const f = child(t, 'fingerprint')!;
  const lines = [`a=ice-ufrag:${attr(t, 'ufrag')}`, `a=ice-pwd:${attr(t, 'pwd')}`,
    `a=fingerprint:${attr(f, 'hash')} ${f.textContent}`, `a=setup:${attr(f, 'setup') || 'actpass'}`];
  for (const c of children(t, 'candidate')) {
    const related = attr(c, 'rel-addr') ? ` raddr ${attr(c, 'rel-addr')} rport ${attr(c, 'rel-port')}` : '';
    lines.push(`a=candidate:${attr(c, 'foundation')} ${attr(c, 'component')} ${attr(c, 'protocol')} ${attr(c, 'priority')} `
      + `${attr(c, 'ip')} ${attr(c, 'port')} typ ${attr(c, 'type')}${related} generation ${attr(c, 'generation') || 0}`);
  }
  return lines;
}

function sectionSources({ kind, mid, mapping: { ssrc, rtx } }: Section): string[] {
  const ids = rtx ? [ssrc, rtx] : [ssrc];
  const lines = ids.flatMap(id => [`a=ssrc:${id} cname:remote`, `a=ssrc:${id} msid:remote-${kind}-${mid} remote-${kind}-${mid}-0`]);
  return rtx ? [`a=ssrc-group:FID ${ssrc} ${rtx}`, ...lines] : lines;
}

interface LocalSection { mid: string; kind: string; lines: string[] }

function split(sdp: string): { head: string[]; sections: LocalSection[] } {
  const [head, ...rest] = sdp.split(/^(?=m=)/m).map(s => s.trim().split(/\r?\n/));
  const sections = rest.map(lines => ({
    kind: lines[0].slice(2).split(' ')[0],
    mid: lines.find(l => l.startsWith('a=mid:'))?.slice(6) ?? '',
    lines,
  }));
  return { head, sections };
}

const ssrcsOf = (s: LocalSection): number[] =>
  [...new Set(s.lines.filter(l => l.startsWith('a=ssrc:')).map(l => Number(l.slice(7).split(' ')[0])))];

/**
 * Adds two more encodings to the camera's section of an answer. Browsers that simulcast by SSRC group (Chromium)
 * then send three; the SSRCs are remembered in layers, so that every later answer names the same ones.
 */
export function withSimulcast(sdp: string, layers: Map<number, number[]>): string {
  const { head, sections } = split(sdp);
  const video = sections.find(s => s.mid === MIDS.video);
  const [primary, rtx] = video ? ssrcsOf(video) : [];
  if (!video || !primary || !rtx || video.lines.some(l => l.startsWith('a=ssrc-group:SIM'))) return sdp;
  const ids = layers.get(primary) ?? [primary, rtx, ...crypto.getRandomValues(new Uint32Array(4))];
  layers.set(primary, ids);
  const attributes = video.lines.filter(l => l.startsWith(`a=ssrc:${primary} `)).map(l => l.slice(`a=ssrc:${primary} `.length));
  video.lines = video.lines.filter(l => !l.startsWith('a=ssrc'));
  video.lines.push(`a=ssrc-group:SIM ${ids[0]} ${ids[2]} ${ids[4]}`);
  for (let i = 0; i < ids.length; i += 2) video.lines.push(`a=ssrc-group:FID ${ids[i]} ${ids[i + 1]}`);
  for (const id of ids) for (const a of attributes) video.lines.push(`a=ssrc:${id} ${a}`);
  return [head, ...sections.map(s => s.lines)].flat().join('\r\n') + '\r\n';
}

/** The session-accept for the focus from our answer; id is our endpoint id. */
export function sessionAccept(offer: Element, answer: string, id: string, responder: string): Element {
  const { head, sections } = split(answer);
  const jingle = el(NS.jingle, 'jingle', { action: 'session-accept', sid: attr(offer, 'sid'), initiator: attr(offer, 'initiator'), responder });
  jingle.append(el(NS.group, 'group', { semantics: 'BUNDLE' }, ...children(offer, 'content').map(c => el(NS.group, 'content', { name: attr(c, 'name') }))));
  for (const c of children(offer, 'content')) {
    const name = attr(c, 'name');
    const section = sections.find(s => s.mid === MIDS[name]);
    if (!section) continue;
    jingle.append(el(NS.jingle, 'content', { creator: 'responder', name, senders: 'both' },
      name === 'data' ? null : description(section, child(c, 'description')!, id),
      answerTransport(section, head, name === 'data')));
  }
  return jingle;
}

function description(s: LocalSection, offered: Element, id: string): Element {
  const numbers = s.lines[0].split(' ').slice(3);
  const types = children(offered, 'payload-type').filter(t => numbers.includes(attr(t, 'id')))
    .sort((a, b) => numbers.indexOf(attr(a, 'id')) - numbers.indexOf(attr(b, 'id')));
  const d = el(NS.rtp, 'description', { media: s.kind }, ...types.map(t => t.cloneNode(true) as Element));
  const sending = s.lines.some(l => l === 'a=sendrecv' || l === 'a=sendonly');
  const ids = sending ? ssrcsOf(s) : [];
  const name = `${id}-${s.kind[0]}0`;
  for (const ssrc of ids) {
    const msid = s.lines.find(l => l.startsWith(`a=ssrc:${ssrc} msid:`))?.split('msid:')[1] ?? `${name} ${name}-0`;
    d.append(el(NS.ssma, 'source', { ssrc, name, videoType: s.kind === 'video' ? 'camera' : undefined },
      el(NS.ssma, 'parameter', { name: 'msid', value: msid })));
  }
  for (const l of sending ? s.lines.filter(l => l.startsWith('a=ssrc-group:')) : []) {
    const [semantics, ...ssrcs] = l.slice('a=ssrc-group:'.length).split(' ');
    d.append(el(NS.ssma, 'ssrc-group', { semantics }, ...ssrcs.map(ssrc => el(NS.ssma, 'source', { ssrc }))));
  }
  d.append(el(NS.rtp, 'rtcp-mux'));
  for (const l of s.lines.filter(l => l.startsWith('a=extmap:'))) {
    const [number, uri] = l.slice('a=extmap:'.length).split(' ');
    d.append(el(NS.hdrext, 'rtp-hdrext', { id: number.split('/')[0], uri }));
  }
  return d;
}

function answerTransport(s: LocalSection, head: string[], sctp: boolean): Element {
  const value = (key: string) => [...s.lines, ...head].find(l => l.startsWith(`a=${key}:`))?.slice(key.length + 3) ?? '';
  const [hash, fingerprint] = value('fingerprint').split(' ');
  return el(NS.ice, 'transport', { ufrag: value('ice-ufrag'), pwd: value('ice-pwd') },
    el(NS.dtls, 'fingerprint', { hash, setup: value('setup') || 'active' }, fingerprint),
    sctp ? el(NS.sctp, 'sctpmap', { number: 5000, protocol: 'webrtc-datachannel', streams: 0 }) : null);
}
