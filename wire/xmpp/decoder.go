package xmpp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// A Decoder reads the elements of an XMPP stream over TCP (RFC 6120, 4). It is used by one goroutine.
type Decoder struct {
	r      io.Reader
	limits Limits
	buf    []byte
	start  int // what is not returned yet begins here in buf
	scope  scope
	stream string // tag of the stream header; empty before it
}

// NewDecoder returns a Decoder for r. The limits are for each stanza.
func NewDecoder(r io.Reader, l Limits) *Decoder {
	return &Decoder{r: r, limits: l.withDefaults()}
}

// A Header is <stream:stream>, which opens a TCP stream and opens it again after SASL.
type Header struct{ From, To, ID, Version, Lang string }

// Append writes the header with the XML declaration before it.
func (h Header) Append(dst []byte) []byte {
	dst = append(dst, `<?xml version='1.0'?><stream:stream xmlns='`+NSClient+`' xmlns:stream='`+NSStream+`'`...)
	for _, a := range [...]Attr{{"from", h.From}, {"to", h.To}, {"id", h.ID}, {"version", h.Version}, {"xml:lang", h.Lang}} {
		if a.Value != "" {
			dst = append(dst, ' ')
			dst = append(dst, a.Name...)
			dst = append(dst, "='"...)
			dst = appendEscaped(dst, a.Value)
			dst = append(dst, '\'')
		}
	}
	return append(dst, '>')
}

// StreamEnd ends a TCP stream.
const StreamEnd = "</stream:stream>"

// Header reads the stream header: the first thing of a stream, and again after SASL has succeeded.
func (d *Decoder) Header() (Header, error) {
	e, err := d.Next()
	if err != nil {
		return Header{}, err
	}
	if !e.Is(NSStream, "stream") {
		return Header{}, fmt.Errorf("%s in place of the stream header: %w", e.Name, ErrSyntax)
	}
	return Header{e.Attr("from"), e.Attr("to"), e.Attr("id"), e.Attr("version"), e.Attr("xml:lang")}, nil
}

// Next reads the next element. A stream header comes as an element without nodes: first, and whenever the
// peer opens the stream again. The error is io.EOF after </stream:stream>, io.ErrUnexpectedEOF when the
// bytes end before, and one of Parse's for what is not allowed; after any error the stream is lost.
func (d *Decoder) Next() (*Element, error) {
	if err := d.skipSpace(); err != nil {
		return nil, err
	}
	declared, err := d.declaration()
	if err != nil {
		return nil, err
	}
	head, err := d.until(tagEnd)
	if err != nil {
		return nil, err
	}
	switch tag := tagName(head); {
	case bytes.HasPrefix(head, []byte("</")):
		if d.stream == "" || declared || string(tag) != d.stream {
			return nil, fmt.Errorf("end tag: %w", ErrSyntax)
		}
		return nil, io.EOF
	case isStream(tag):
		return d.header(head)
	case declared, d.stream == "":
		return nil, fmt.Errorf("no stream header: %w", ErrSyntax)
	}
	whole, err := d.until(elementEnd)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(whole) {
		return nil, fmt.Errorf("utf-8: %w", ErrSyntax)
	}
	e, err := parse(string(whole), d.limits, d.scope)
	if err != nil {
		return nil, err
	}
	d.start += len(whole)
	return e, nil
}

// header takes the stream header that is at the start of the buffer.
func (d *Decoder) header(head []byte) (*Element, error) {
	if !utf8.Valid(head) {
		return nil, fmt.Errorf("utf-8: %w", ErrSyntax)
	}
	p := parser{s: string(head), limits: d.limits, stacks: new(stacks)}
	e, tag, empty, err := p.startTag()
	if err != nil {
		return nil, err
	}
	if empty || !e.Is(NSStream, "stream") {
		return nil, fmt.Errorf("stream header: %w", ErrSyntax)
	}
	d.scope, d.stream = p.scope, tag
	d.start += len(head)
	return e, nil
}

// isStream reports whether a tag is that of a stream header, whatever its prefix.
func isStream(tag []byte) bool {
	return string(tag) == "stream" || bytes.HasSuffix(tag, []byte(":stream"))
}

func tagName(head []byte) []byte {
	head = bytes.TrimPrefix(head[1:], []byte("/"))
	return head[:len(head)-len(bytes.TrimLeftFunc(head, func(r rune) bool { return r > ' ' && r != '/' && r != '>' }))]
}

// declaration skips an XML declaration and reports whether there was one.
func (d *Decoder) declaration() (bool, error) {
	if d.buf[d.start] != '<' {
		return false, fmt.Errorf("text between stanzas: %w", ErrSyntax)
	}
	for len(d.buf)-d.start < 2 {
		if err := d.fill(); err != nil {
			return false, err
		}
	}
	switch b := d.buf[d.start:]; {
	case b[1] == '!':
		return false, ErrForbidden
	case b[1] != '?':
		return false, nil
	}
	b, err := d.until(declarationEnd)
	if err != nil {
		return false, err
	}
	if s := string(b); !strings.HasPrefix(s, "<?xml ") || strings.ContainsAny(s[2:len(s)-2], "<>?&") {
		return false, ErrForbidden
	}
	d.start += len(b)
	return true, d.skipSpace()
}

// skipSpace discards white space, which keeps connections alive, and waits for something else.
func (d *Decoder) skipSpace() error {
	for {
		for d.start < len(d.buf) && isSpace(d.buf[d.start]) {
			d.start++
		}
		if d.start < len(d.buf) {
			return nil
		}
		if err := d.fill(); err != nil {
			return err
		}
	}
}

// until reads until end is satisfied and returns everything up to there, valid until the next call.
func (d *Decoder) until(end func(s *scan, b []byte) int) ([]byte, error) {
	var s scan
	for {
		n := end(&s, d.buf[d.start:])
		if n > d.limits.Bytes || n < 0 && len(d.buf)-d.start > d.limits.Bytes {
			return nil, ErrTooLarge
		}
		if n >= 0 {
			return d.buf[d.start : d.start+n], nil
		}
		if err := d.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more. It moves what is left to the front before it grows the buffer.
func (d *Decoder) fill() error {
	const chunk = 4096
	if d.start == len(d.buf) {
		d.buf, d.start = d.buf[:0], 0
		if cap(d.buf) > 16*chunk { // a large stanza has gone through
			d.buf = nil
		}
	}
	if cap(d.buf)-len(d.buf) < chunk {
		if d.start >= chunk {
			d.buf = d.buf[:copy(d.buf, d.buf[d.start:])]
			d.start = 0
		} else {
			d.buf = append(make([]byte, 0, 2*cap(d.buf)+chunk), d.buf...)
		}
	}
	for range 100 {
		n, err := d.r.Read(d.buf[len(d.buf):cap(d.buf)])
		d.buf = d.buf[:len(d.buf)+n]
		switch {
		case n > 0:
			return nil // an error comes again with the next read
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// A scan finds where something ends, going on where the last attempt stopped. It does not judge: the parser does.
type scan struct {
	i     int
	depth int
	in    byte // 0 text, '<' a tag, '/' an end tag, a quote in an attribute
	last  byte // before i, in a tag
}

// tagEnd returns the length of the tag at the start of b, or -1.
func tagEnd(s *scan, b []byte) int { return s.run(b, true) }

// elementEnd returns the length of the element at the start of b, or -1.
func elementEnd(s *scan, b []byte) int { return s.run(b, false) }

func (s *scan) run(b []byte, oneTag bool) int {
	for s.i < len(b) {
		c := b[s.i]
		switch s.in {
		case 0:
			next := bytes.IndexByte(b[s.i:], '<')
			if next < 0 {
				s.i = len(b)
				return -1
			}
			s.i += next
			if s.i+1 == len(b) {
				return -1 // whether it opens or closes is not known yet
			}
			s.in, s.last = '<', 0
			switch b[s.i+1] {
			case '/':
				s.in = '/'
				s.i++
			case '!', '?': // the parser refuses it, now rather than when it is complete
				return s.i + 2
			}
		case '<', '/':
			switch c {
			case '"', '\'':
				if s.in == '<' {
					s.in = c
				}
			case '>':
				switch {
				case s.in == '/':
					s.depth--
				case s.last != '/':
					s.depth++
				}
				s.in = 0
				if oneTag || s.depth <= 0 {
					return s.i + 1
				}
			}
			s.last = c
		default: // in quotes
			next := bytes.IndexByte(b[s.i:], s.in)
			if next < 0 {
				s.i = len(b)
				return -1
			}
			s.i += next
			s.in, s.last = '<', s.in // the quote ends the slash that a value may end with
		}
		s.i++
	}
	return -1
}

// declarationEnd returns the length of the declaration at the start of b, or -1.
func declarationEnd(_ *scan, b []byte) int {
	if n := bytes.Index(b, []byte("?>")); n >= 0 {
		return n + 2
	}
	return -1
}
