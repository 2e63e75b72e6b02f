package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"plenum/wire/xmpp"
)

// closeFrame is the one spelling of <close/> that Jitsi's Strophe recognises.
const closeFrame = `<close xmlns="urn:ietf:params:xml:ns:xmpp-framing" />`

// wsSocket is an XMPP stream over WebSocket: one element a message (RFC 7395). gorilla reads; what is
// written is framed here, so that everything that waits for a client goes out in one write. A server's
// frames are not masked, so framing is a header of two to ten bytes.
type wsSocket struct {
	ws     *websocket.Conn
	limits xmpp.Limits
	pong   func(frame []byte) // takes the answer to a ping, for the writer
	heard  func()             // told of control frames
}

func newWSSocket(ws *websocket.Conn, stanzaBytes int) *wsSocket {
	s := &wsSocket{ws: ws, limits: xmpp.Limits{Bytes: stanzaBytes}}
	ws.SetPingHandler(func(data string) error {
		s.heard()
		if s.pong != nil {
			s.pong(appendFrame(nil, websocket.PongMessage, []byte(data)))
		}
		return nil
	})
	ws.SetPongHandler(func(string) error { s.heard(); return nil })
	ws.SetCloseHandler(func(int, string) error { return nil })
	return s
}

func appendFrame(dst []byte, opcode int, payload []byte) []byte {
	dst = append(dst, 0x80|byte(opcode))
	switch n := len(payload); {
	case n < 126:
		dst = append(dst, byte(n))
	case n < 1<<16:
		dst = append(dst, 126)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	default:
		dst = append(dst, 127)
		dst = binary.BigEndian.AppendUint64(dst, uint64(n))
	}
	return append(dst, payload...)
}

// messages are the buffers that messages are read into; the parser copies.
var messages = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (s *wsSocket) read() (*xmpp.Element, int, error) {
	kind, r, err := s.ws.NextReader()
	if err != nil {
		return nil, 0, closeReason(err)
	}
	if kind != websocket.TextMessage {
		return nil, 0, streamError("unsupported-encoding")
	}
	b := messages.Get().(*bytes.Buffer)
	defer messages.Put(b)
	b.Reset()
	n, err := b.ReadFrom(io.LimitReader(r, int64(s.limits.Bytes)+1))
	if err != nil {
		return nil, 0, closeReason(err)
	}
	el, err := xmpp.Parse(b.Bytes(), s.limits)
	if err == nil && el.Is(xmpp.NSFraming, "close") {
		err = errBye
	}
	return el, int(n), err
}

// closeReason tells a socket that was closed on purpose from one that died. A page that goes away sends
// 1001, one that is done 1000. The library closes without a code (1005) when it gives a socket up in order
// to resume on another, so that is no goodbye.
func closeReason(err error) error {
	var c *websocket.CloseError
	if errors.As(err, &c) && c.Code != websocket.CloseNoStatusReceived && c.Code != websocket.CloseAbnormalClosure {
		return errBye
	}
	return err
}

func (s *wsSocket) open() (string, error) {
	el, _, err := s.read()
	if err != nil {
		return "", condition(err)
	}
	if !el.Is(xmpp.NSFraming, "open") {
		return "", unexpected(el)
	}
	return el.Attr("to"), nil
}

func (s *wsSocket) write(b []byte) error {
	_, err := s.ws.NetConn().Write(b)
	return err
}

func (s *wsSocket) net() net.Conn { return s.ws.NetConn() }

// secure: the edge in front speaks TLS, and a page on plain HTTP has no microphone except on localhost.
func (s *wsSocket) secure() bool { return true }

func (s *wsSocket) frame(dst, element []byte) []byte {
	return appendFrame(dst, websocket.TextMessage, element)
}

func (s *wsSocket) header(dst []byte, from, id string) []byte {
	open := xmpp.New(xmpp.NSFraming, "open", "from", from, "id", id, "version", "1.0", "xml:lang", "en")
	return s.frame(dst, open.Append(nil))
}

func (s *wsSocket) farewell(dst []byte, condition string) []byte {
	code := websocket.CloseNormalClosure
	if condition != "" {
		dst = s.frame(dst, appendStreamError(nil, condition))
		code = websocket.ClosePolicyViolation
		if condition == "system-shutdown" {
			code = websocket.CloseGoingAway
		}
	}
	dst = s.frame(dst, []byte(closeFrame))
	return appendFrame(dst, websocket.CloseMessage, websocket.FormatCloseMessage(code, ""))
}

func (s *wsSocket) probe(dst []byte) []byte { return appendFrame(dst, websocket.PingMessage, nil) }

func (s *wsSocket) probes() bool { return true }

func (s *wsSocket) offersTLS() (offered, required bool) { return false, false }

func (s *wsSocket) startTLS() error { panic("session: STARTTLS on a WebSocket") }

// upgrader selects the subprotocol; any page may connect, since nothing here goes by cookies.
var upgrader = websocket.Upgrader{
	HandshakeTimeout: 10 * time.Second,
	ReadBufferSize:   512, // held as long as the socket; larger messages are read past it
	Subprotocols:     []string{"xmpp"},
	WriteBufferPool:  new(sync.Pool),
	CheckOrigin:      allowAll,
}
