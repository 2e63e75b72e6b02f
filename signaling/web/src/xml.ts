// XML as the wire has it: elements with a namespace of their own, made and read through the browser's DOM.

export const NS = {
  client: 'jabber:client',
  framing: 'urn:ietf:params:xml:ns:xmpp-framing',
  sasl: 'urn:ietf:params:xml:ns:xmpp-sasl',
  bind: 'urn:ietf:params:xml:ns:xmpp-bind',
  sm: 'urn:xmpp:sm:3',
  ping: 'urn:xmpp:ping',
  disco: 'http://jabber.org/protocol/disco#info',
  caps: 'http://jabber.org/protocol/caps',
  nick: 'http://jabber.org/protocol/nick',
  muc: 'http://jabber.org/protocol/muc',
  mucUser: 'http://jabber.org/protocol/muc#user',
  focus: 'http://jitsi.org/protocol/focus',
  jitmeet: 'http://jitsi.org/jitmeet',
  jingle: 'urn:xmpp:jingle:1',
  rtp: 'urn:xmpp:jingle:apps:rtp:1',
  ssma: 'urn:xmpp:jingle:apps:rtp:ssma:0',
  hdrext: 'urn:xmpp:jingle:apps:rtp:rtp-hdrext:0',
  fb: 'urn:xmpp:jingle:apps:rtp:rtcp-fb:0',
  group: 'urn:xmpp:jingle:apps:grouping:0',
  ice: 'urn:xmpp:jingle:transports:ice-udp:1',
  dtls: 'urn:xmpp:jingle:apps:dtls:0',
  sctp: 'urn:xmpp:jingle:transports:dtls-sctp:1',
  colibri: 'http://jitsi.org/protocol/colibri',
} as const;

const doc = document.implementation.createDocument(null, null);

type Attrs = Record<string, string | number | undefined>;

/** Makes an element; attributes that are undefined are left out, children that are null are skipped. */
export function el(ns: string, name: string, attrs: Attrs = {}, ...children: (Element | string | null)[]): Element {
  const e = doc.createElementNS(ns, name);
  for (const [k, v] of Object.entries(attrs)) if (v !== undefined) e.setAttribute(k, String(v));
  for (const c of children) if (c !== null) e.append(c);
  return e;
}

export function parse(text: string): Element {
  const e = new DOMParser().parseFromString(text, 'text/xml').documentElement;
  if (e.getElementsByTagName('parsererror').length || e.nodeName === 'parsererror') throw new Error('the server sent broken XML');
  return e;
}

export const write = (e: Element): string => new XMLSerializer().serializeToString(e);

/** The first child with this name, in a namespace if one is given. */
export function child(e: Element | null | undefined, name: string, ns?: string): Element | null {
  for (const c of e?.children ?? []) if (c.localName === name && (!ns || c.namespaceURI === ns)) return c;
  return null;
}

export function children(e: Element | null | undefined, name: string): Element[] {
  return [...(e?.children ?? [])].filter(c => c.localName === name);
}

export const attr = (e: Element | null | undefined, name: string): string => e?.getAttribute(name) ?? '';
