// An XMPP stream over WebSocket (RFC 7395) with SASL ANONYMOUS and stream management (XEP-0198): a lost
// socket is resumed without anybody above noticing, as long as the server remembers the session.

import { NS, attr, child, el, parse, write } from './xml';

const PING_MS = 10_000; // a server that says nothing for two of these has gone
const RETRY_MS = [300, 1000, 2000, 4000, 8000, 15_000, 25_000]; // less than the minute that the server waits

export interface StreamHandler {
  online(jid: string): void;
  stanza(stanza: Element): void;
  /** The socket is lost or back. */
  interrupted(lost: boolean): void;
  /** The session is gone for good. */
  failed(why: string): void;
}

export class Stream {
  jid = '';
  private socket?: WebSocket;
  private token = '';
  private ready = false; // <enabled/> or <resumed/> came on this socket: both sides count
  private received = 0;
  private acked = 0;
  private unacked: Element[] = [];
  private replies = new Map<string, (reply: Element) => void>();
  private ids = 0;
  private attempts = 0;
  private closed = false;
  private heard = 0;
  private timer = 0;

  constructor(private readonly url: string, private readonly domain: string, private readonly handler: StreamHandler) {}

  connect(): void {
    const url = new URL(this.url);
    if (this.token) url.searchParams.set('previd', this.token);
    this.ready = false;
    const socket = this.socket = new WebSocket(url, 'xmpp');
    socket.onopen = () => this.open();
    socket.onmessage = m => { this.heard = Date.now(); this.receive(parse(m.data)); };
    socket.onclose = () => { if (socket === this.socket) this.lost(); };
    clearInterval(this.timer);
    this.heard = Date.now();
    this.timer = setInterval(() => this.keepAlive(), PING_MS);
  }

  /** Sends a stanza; one that is sent while the socket is away goes out after the resumption. */
  send(stanza: Element): void {
    this.unacked.push(stanza);
    if (!this.ready || this.socket?.readyState !== WebSocket.OPEN) return;
    this.write(stanza);
    this.write(el(NS.sm, 'r'));
  }

  /** Sends an IQ and resolves with its result, or rejects with the condition of its error. */
  iq(type: 'get' | 'set', to: string, payload: Element): Promise<Element> {
    const id = `p${++this.ids}`;
    return new Promise((resolve, reject) => {
      this.replies.set(id, reply => attr(reply, 'type') === 'result' ? resolve(reply)
        : reject(new Error(child(reply, 'error')?.firstElementChild?.localName ?? 'error')));
      this.send(el(NS.client, 'iq', { id, type, to }, payload));
    });
  }

  reply(iq: Element, payload: Element | null = null): void {
    this.send(el(NS.client, 'iq', { id: attr(iq, 'id'), to: attr(iq, 'from'), type: 'result' }, payload));
  }

  refuse(iq: Element, condition: string): void {
    this.send(el(NS.client, 'iq', { id: attr(iq, 'id'), to: attr(iq, 'from'), type: 'error' },
      el(NS.client, 'error', { type: 'cancel' }, el('urn:ietf:params:xml:ns:xmpp-stanzas', condition))));
  }

  close(): void {
    this.closed = true;
    clearInterval(this.timer);
    if (this.socket?.readyState === WebSocket.OPEN) this.write(el(NS.framing, 'close'));
    this.socket?.close();
  }

  private write(e: Element): void { this.socket!.send(write(e)); }
  private open(): void { this.write(el(NS.framing, 'open', { to: this.domain, version: '1.0' })); }

  private receive(e: Element): void {
    switch (e.localName) {
      case 'open': return;
      case 'close': return this.socket!.close();
      case 'features': return this.features(e);
      case 'success': return this.open();
      case 'failure': return this.fail('the server refused us: ' + (e.firstElementChild?.localName ?? 'failure'));
      case 'enabled': // comes again with a newer token before acknowledgements
        this.token = attr(e, 'id');
        return this.ready ? undefined : this.began();
      case 'resumed': return this.resumed(e);
      case 'failed': return this.fail('the connection was away for too long');
      case 'r': return this.write(el(NS.sm, 'a', { h: this.received }));
      case 'a': return this.acknowledge(e);
      case 'error': return this.fail('the server closed the stream: ' + (e.firstElementChild?.localName ?? 'error'));
    }
    this.received++;
    const done = e.localName === 'iq' && /^(result|error)$/.test(attr(e, 'type')) && this.replies.get(attr(e, 'id'));
    if (!done) return this.handler.stanza(e);
    this.replies.delete(attr(e, 'id'));
    done(e);
  }

  private features(e: Element): void {
    if (child(e, 'mechanisms')) return this.write(el(NS.sasl, 'auth', { mechanism: 'ANONYMOUS' }));
    if (this.token) return this.write(el(NS.sm, 'resume', { h: this.received, previd: this.token }));
    this.replies.set('bind', reply => {
      this.jid = child(child(reply, 'bind'), 'jid')?.textContent ?? '';
      this.write(el(NS.sm, 'enable', { resume: 'true' }));
    });
    this.write(el(NS.client, 'iq', { id: 'bind', type: 'set' }, el(NS.bind, 'bind')));
  }

  private began(): void {
    this.ready = true;
    this.received = this.acked = this.attempts = 0;
    this.unacked.forEach(s => this.write(s));
    this.handler.online(this.jid);
  }

  private resumed(e: Element): void {
    this.ready = true;
    this.attempts = 0;
    this.acknowledge(e);
    this.unacked.forEach(s => this.write(s));
    this.handler.interrupted(false);
  }

  private acknowledge(e: Element): void {
    const h = Number(attr(e, 'h'));
    this.unacked.splice(0, h - this.acked);
    this.acked = h;
  }

  private keepAlive(): void {
    const silent = Date.now() - this.heard;
    if (silent > 2 * PING_MS) this.socket?.close();
    else if (silent > PING_MS / 2 && this.ready) {
      this.iq('get', this.domain, el(NS.ping, 'ping')).catch(() => undefined);
    }
  }

  private lost(): void {
    clearInterval(this.timer);
    if (this.closed) return;
    if (!this.token || this.attempts >= RETRY_MS.length) return this.fail('the connection to the server is lost');
    if (this.attempts === 0) this.handler.interrupted(true);
    setTimeout(() => { if (!this.closed) this.connect(); }, RETRY_MS[this.attempts++]);
  }

  private fail(why: string): void {
    if (this.closed) return;
    this.close();
    this.handler.failed(why);
  }
}
