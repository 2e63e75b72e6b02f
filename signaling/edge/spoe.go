package edge

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// HAProxy asks this process where a request belongs by its Stream Processing Offload Protocol (SPOP 2.0, doc/SPOE.txt
// of HAProxy 2.6). What is here of it is what an agent needs that answers each message at once: no pipelining, no
// fragments, one frame at a time on each connection.

// maxFrame bounds a frame of either side, in bytes; HAProxy's own default.
const maxFrame = 16380

// errProtocol is returned for frames that no HAProxy sends.
var errProtocol = errors.New("not the stream processing offload protocol")

// Kinds of frames.
const (
	haproxyHello      = 1
	haproxyDisconnect = 2
	haproxyNotify     = 3
	agentHello        = 101
	agentDisconnect   = 102
	agentAck          = 103
)

// A frame is one message of the protocol without its length.
type frame struct {
	kind          byte
	stream, frame uint64
	payload       []byte
}

// flagWhole marks the only or last fragment of a frame.
const flagWhole = 1

// readFrame reads one frame. The payload is valid until the next one is read into the same buffer.
func readFrame(r io.Reader, buf []byte) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return frame{}, fmt.Errorf("%w: a frame of %d bytes", errProtocol, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return frame{}, err
	}
	return parseFrame(buf[:n])
}

func parseFrame(b []byte) (frame, error) {
	d := decoder{b: b}
	f := frame{kind: d.byte()}
	flags := d.take(4)
	f.stream, f.frame = d.varint(), d.varint()
	if d.failed || flags[3]&flagWhole == 0 {
		return frame{}, fmt.Errorf("%w: a frame in parts", errProtocol)
	}
	f.payload = d.b
	return f, nil
}

func (f frame) append(b []byte) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, f.kind, 0, 0, 0, flagWhole)
	b = appendVarint(b, f.stream)
	b = appendVarint(b, f.frame)
	b = append(b, f.payload...)
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// A message is what HAProxy tells, with its arguments. What is not text is left out.
type message struct {
	name string
	args map[string]string
}

// parseMessages reads the payload of a notification.
func parseMessages(b []byte) ([]message, error) {
	var all []message
	for d := (decoder{b: b}); len(d.b) > 0; {
		m := message{name: d.text(), args: map[string]string{}}
		for range d.byte() {
			name := d.text()
			if value, ok := d.value(); ok {
				m.args[name] = value
			}
		}
		if d.failed {
			return nil, fmt.Errorf("%w: a message cut short", errProtocol)
		}
		all = append(all, m)
	}
	return all, nil
}

// setText appends the action that sets a variable of the transaction.
func setText(b []byte, name, value string) []byte {
	const setVar, arguments, scopeTransaction = 1, 3, 2
	b = append(b, setVar, arguments, scopeTransaction)
	return appendValue(appendText(b, name), value)
}

// Types of values; the upper half of the byte is flags.
const (
	typeNull   = 0
	typeBool   = 1
	typeInt32  = 2
	typeUint32 = 3
	typeInt64  = 4
	typeUint64 = 5
	typeIPv4   = 6
	typeIPv6   = 7
	typeText   = 8
	typeBytes  = 9
)

// A decoder reads from the front of b and fails for good when there is too little.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.failed, d.b = true, nil
		return make([]byte, min(max(n, 0), 16))
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) byte() byte { return d.take(1)[0] }

// varint reads an integer in the protocol's own form: 240 values in a byte, then four bits and seven at a time.
func (d *decoder) varint() uint64 {
	v := uint64(d.byte())
	if v < 240 {
		return v
	}
	for shift := 4; shift < 64; shift += 7 {
		b := d.byte()
		v += uint64(b) << shift
		if b < 128 {
			return v
		}
	}
	d.failed = true
	return 0
}

func (d *decoder) text() string {
	n := d.varint()
	if n > uint64(len(d.b)) {
		d.failed, d.b = true, nil
		return ""
	}
	return string(d.take(int(n)))
}

// value reads a typed value and reports whether it is text.
func (d *decoder) value() (string, bool) {
	switch d.byte() & 0x0f {
	case typeNull, typeBool:
	case typeInt32, typeUint32, typeInt64, typeUint64:
		d.varint()
	case typeIPv4:
		d.take(4)
	case typeIPv6:
		d.take(16)
	case typeText:
		return d.text(), true
	case typeBytes:
		d.text()
	default:
		d.failed, d.b = true, nil
	}
	return "", false
}

func appendVarint(b []byte, v uint64) []byte {
	if v < 240 {
		return append(b, byte(v))
	}
	b = append(b, byte(v)|0xf0)
	for v = (v - 240) >> 4; v >= 128; v = (v - 128) >> 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

func appendText(b []byte, s string) []byte { return append(appendVarint(b, uint64(len(s))), s...) }

func appendValue(b []byte, s string) []byte { return appendText(append(b, typeText), s) }

// An answerer says which variables of its transaction a message sets: names and values in turn.
type answerer func(message) []string

// serveOffload answers HAProxy's questions on l until ctx ends. It owns the goroutines that it starts.
func serveOffload(ctx context.Context, l net.Listener, answer answerer) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		open.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			converse(conn, answer)
		})
	}
}

// converse is one connection from its hello on. HAProxy opens another one when it ends.
func converse(conn net.Conn, answer answerer) {
	in, buf := bufio.NewReaderSize(conn, maxFrame), make([]byte, maxFrame)
	var out, payload []byte
	for {
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute)) // HAProxy's own limit is shorter
		f, err := readFrame(in, buf)
		if err != nil {
			return
		}
		reply := frame{stream: f.stream, frame: f.frame}
		switch f.kind {
		case haproxyHello:
			reply.kind, payload = agentHello, appendHello(payload[:0])
		case haproxyNotify:
			messages, err := parseMessages(f.payload)
			if err != nil {
				return
			}
			reply.kind, payload = agentAck, payload[:0]
			for _, m := range messages {
				set := answer(m)
				for i := 0; i+1 < len(set); i += 2 {
					payload = setText(payload, set[i], set[i+1])
				}
			}
		default: // a goodbye
			return
		}
		reply.payload = payload
		out = reply.append(out[:0])
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

func appendHello(b []byte) []byte {
	b = appendValue(appendText(b, "version"), "2.0")
	b = appendVarint(append(appendText(b, "max-frame-size"), typeUint32), maxFrame)
	return appendValue(appendText(b, "capabilities"), "")
}
