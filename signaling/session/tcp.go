package session

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"plenum/wire/xmpp"
)

// tcpSocket is an XMPP stream over TCP (RFC 6120), with STARTTLS where there is a certificate.
type tcpSocket struct {
	conn   net.Conn
	tls    *tls.Config
	limits xmpp.Limits
	in     *counter
	dec    *xmpp.Decoder
	safe   bool
}

// A counter counts what is read through it.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func newTCPSocket(conn net.Conn, cfg *tls.Config, stanzaBytes int) *tcpSocket {
	s := &tcpSocket{tls: cfg, limits: xmpp.Limits{Bytes: stanzaBytes}, safe: remoteAddr(conn).IsLoopback()}
	s.use(conn)
	return s
}

// use reads from conn from now on. What the decoder had read ahead is dropped: bytes that came before TLS
// must not count as protected.
func (s *tcpSocket) use(conn net.Conn) {
	s.conn = conn
	s.in = &counter{r: conn}
	s.dec = xmpp.NewDecoder(s.in, s.limits)
}

func (s *tcpSocket) open() (string, error) {
	h, err := s.dec.Header()
	if err != nil {
		return "", condition(err)
	}
	return h.To, nil
}

func (s *tcpSocket) read() (*xmpp.Element, int, error) {
	before := s.in.n
	el, err := s.dec.Next()
	if errors.Is(err, io.EOF) { // </stream:stream>; a mere end of the connection is ErrUnexpectedEOF
		err = errBye
	}
	return el, s.in.n - before, err
}

func (s *tcpSocket) write(b []byte) error {
	_, err := s.conn.Write(b)
	return err
}

func (s *tcpSocket) net() net.Conn { return s.conn }

func (s *tcpSocket) secure() bool { return s.safe }

func (s *tcpSocket) frame(dst, element []byte) []byte { return append(dst, element...) }

func (s *tcpSocket) header(dst []byte, from, id string) []byte {
	return xmpp.Header{From: from, ID: id, Version: "1.0", Lang: "en"}.Append(dst)
}

func (s *tcpSocket) farewell(dst []byte, condition string) []byte {
	if condition != "" {
		dst = appendStreamError(dst, condition)
	}
	return append(dst, xmpp.StreamEnd...)
}

func (s *tcpSocket) probe(dst []byte) []byte { return append(dst, ' ') }

func (s *tcpSocket) probes() bool { return false }

// offersTLS: over loopback a peer may do without.
func (s *tcpSocket) offersTLS() (offered, required bool) {
	if _, done := s.conn.(*tls.Conn); done || s.tls == nil {
		return false, false
	}
	return true, !s.safe
}

func (s *tcpSocket) startTLS() error {
	c := tls.Server(s.conn, s.tls)
	if err := c.Handshake(); err != nil {
		return err
	}
	s.use(c)
	s.safe = true
	return nil
}

// Serve takes XMPP over TCP from l until ctx is cancelled or l is closed, and closes l. It returns when
// it no longer accepts; Close waits for the sessions.
func (srv *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var pause time.Duration
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			srv.accept(c)
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		default:
			// Out of file descriptors, or a connection that was gone before we got it: go on, not at full speed.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			srv.cfg.Log.Warn("cannot accept", "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func (srv *Server) accept(nc net.Conn) {
	remote := remoteAddr(nc)
	place := srv.enter(remote)
	if place == nil {
		nc.Close()
		return
	}
	c := newConn(srv, newTCPSocket(nc, srv.cfg.TLS, srv.cfg.AccountStanzaBytes))
	c.id.Remote = remote
	go srv.serve(c, place)
}

func remoteAddr(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{} // a pipe
	}
	return ap.Addr().Unmap()
}
