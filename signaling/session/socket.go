package session

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"plenum/wire/xmpp"
)

// A socket is one connection, WebSocket or TCP, as elements. Reading belongs to one goroutine, writing to
// another; deadlines and close may come from anywhere.
type socket interface {
	// open waits for the beginning of a stream and returns its "to".
	open() (to string, err error)
	// read returns the next element and how much it cost in bytes.
	read() (*xmpp.Element, int, error)
	// write writes what the append methods made.
	write([]byte) error
	net() net.Conn
	secure() bool // nobody can read along: TLS, loopback, or an edge in front

	frame(dst, element []byte) []byte             // one element
	header(dst []byte, from, id string) []byte    // the beginning of our stream
	farewell(dst []byte, condition string) []byte // a stream error, if there is a condition, and the end
	probe(dst []byte) []byte                      // something that a dead connection cannot take
	probes() bool                                 // whether the peer answers a probe
	startTLS() error                              // after <proceed/>; TCP only
	offersTLS() (offered, required bool)
}

// errBye says that the peer closed its session on purpose. It ends the session at once, as a streamError
// does; any other error leaves it hibernating.
var errBye = errors.New("closed by peer")

// A streamError is a condition that the peer is told before its socket is closed (RFC 6120, 4.9.3).
type streamError string

func (e streamError) Error() string { return "stream error " + string(e) }

// condition says what a peer that sent bad XML is told; other errors are returned as they are.
func condition(err error) error {
	switch {
	case errors.Is(err, xmpp.ErrTooLarge), errors.Is(err, xmpp.ErrTooDeep):
		return streamError("policy-violation")
	case errors.Is(err, xmpp.ErrForbidden):
		return streamError("restricted-xml")
	case errors.Is(err, xmpp.ErrSyntax):
		return streamError("not-well-formed")
	}
	return err
}

func appendStreamError(dst []byte, condition string) []byte {
	return xmpp.New(xmpp.NSStream, "error").Add(xmpp.New(xmpp.NSStreams, condition)).Append(dst)
}

// A conn is one socket with what its reader and its writer share.
type conn struct {
	srv    *Server
	sock   socket
	id     Identity // without address and account before the login
	previd string   // resumption token from the URL
	bucket bucket   // reader's

	heard  atomic.Int64  // when something last arrived, in nanoseconds
	called chan struct{} // the owner has something to look at
	dead   chan struct{} // closed by kill
	once   sync.Once
	left   chan struct{} // closed when the owning goroutine has given its session away

	// guarded by the lock of the session that has it
	writing bool           // there is a writer
	closed  bool           // there will be no more
	writers sync.WaitGroup // it, until it has ended
}

func newConn(srv *Server, sock socket) *conn {
	return &conn{srv: srv, sock: sock,
		called: make(chan struct{}, 1), dead: make(chan struct{}), left: make(chan struct{})}
}

// kill closes the socket; reader and writer notice.
func (c *conn) kill() {
	c.once.Do(func() {
		close(c.dead)
		c.sock.net().Close()
	})
}

// hurry gives the peer a second to take the last bytes.
func (c *conn) hurry() { c.sock.net().SetWriteDeadline(time.Now().Add(time.Second)) }

// call makes the goroutine that owns a hibernating session look at it.
func (c *conn) call() {
	select {
	case c.called <- struct{}{}:
	default:
	}
}

// read returns the next element; it waits where the peer sends more than its rate.
func (c *conn) read() (*xmpp.Element, error) {
	el, n, err := c.sock.read()
	if err != nil {
		return nil, condition(err)
	}
	now := time.Now()
	c.heard.Store(now.UnixNano())
	if wait := c.bucket.take(now, max(n, minCost)); wait > 0 {
		c.srv.throttled.Add(1)
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.dead:
			return nil, net.ErrClosed
		}
	}
	return el, nil
}

// say writes elements in the time before there is a writer.
func (c *conn) say(elements ...[]byte) error {
	var b []byte
	for _, e := range elements {
		b = c.sock.frame(b, e)
	}
	return c.sock.write(b)
}

// batches are the buffers that writers gather in; idle sessions hold none.
var batches = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// wakeLocked makes sure that what waits will be written. A writer lives for one burst: a session with
// nothing to say has no goroutine for it, and everything that is queued by the time that the writer runs
// goes out in one write.
func (s *Session) wakeLocked() {
	c := s.conn
	if c == nil || c.writing || c.closed {
		return
	}
	c.writing = true
	c.writers.Add(1)
	go s.write(c)
}

// write is the writer of s on c. It ends when there is nothing more to write, and kills c when the peer
// does not take what it is given, or after the last bytes.
func (s *Session) write(c *conn) {
	defer c.writers.Done()
	buf := batches.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= 2*batchBytes {
			batches.Put(buf)
		}
	}()
	for {
		s.mu.Lock()
		if s.out.idle() {
			c.writing = false
			s.mu.Unlock()
			return
		}
		if s.void() {
			s.endLocked("", "this shard has lost its rooms")
			s.mu.Unlock()
			return
		}
		b, last := s.out.take((*buf)[:0], c.sock, s.in)
		*buf = b
		if !s.out.finished { // otherwise see hurry
			c.sock.net().SetWriteDeadline(time.Now().Add(s.srv.cfg.WriteTimeout))
		}
		s.mu.Unlock()
		if err := c.sock.write(b); err != nil || last {
			c.kill() // writing stays: nothing can follow
			return
		}
	}
}

// void reports whether nothing may be written any more of what is queued (Config.Gate).
func (s *Session) void() bool {
	return s.srv.cfg.Gate != nil && s.id.Account == "" && s.srv.cfg.Gate() != s.life
}

// life is what Config.Gate says now.
func (srv *Server) life() uint64 {
	if srv.cfg.Gate == nil {
		return 0
	}
	return srv.cfg.Gate()
}

// watch asks the peer on c for a sign of life whenever it has been silent for a while, and kills c when
// there was none for twice that time. It runs until the timer that it returns is stopped.
func (s *Session) watch(c *conn) *time.Timer {
	silence := s.srv.cfg.Silence
	var t *time.Timer
	look := func() {
		quiet := time.Since(time.Unix(0, c.heard.Load()))
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case c.closed:
		case quiet >= 2*silence:
			c.kill()
		case quiet >= silence:
			s.out.probe = true
			s.wakeLocked()
			t.Reset(2*silence - quiet)
		default:
			t.Reset(silence - quiet)
		}
	}
	s.mu.Lock() // look must find t
	defer s.mu.Unlock()
	t = time.AfterFunc(silence, look)
	return t
}
