package xmpp

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"
)

// Limits bound what one element may make the parser do. Zero fields mean the defaults.
type Limits struct {
	Bytes    int // length of the element in bytes; 256 KiB
	Depth    int // nesting, the root being 1; 32
	Elements int // elements in all; 4096
	Attrs    int // attributes of one element, namespace declarations included; 64
}

func (l Limits) withDefaults() Limits {
	set := func(field *int, value int) {
		if *field <= 0 {
			*field = value
		}
	}
	set(&l.Bytes, 256<<10)
	set(&l.Depth, 32)
	set(&l.Elements, 4096)
	set(&l.Attrs, 64)
	return l
}

var (
	// ErrTooLarge is returned for an element with more bytes, elements or attributes than Limits allow.
	ErrTooLarge = errors.New("element too large")
	// ErrTooDeep is returned for an element that is nested deeper than Limits allow.
	ErrTooDeep = errors.New("element nested too deeply")
	// ErrForbidden is returned for what XMPP excludes from XML: document types, processing instructions,
	// comments, CDATA sections and entities that are not predefined (RFC 6120, 11.1).
	ErrForbidden = errors.New("restricted xml")
	// ErrSyntax is returned for what is not well-formed XML with namespaces, or not UTF-8.
	ErrSyntax = errors.New("xml not well-formed")
)

const (
	nsXML   = "http://www.w3.org/XML/1998/namespace"
	nsXMLNS = "http://www.w3.org/2000/xmlns/"
)

// Parse reads b, which must be exactly one element, with white space around it at most. It is strict: see
// ErrForbidden, and names are ASCII. Names, values and text share one copy of b.
//
// Attributes with a prefix other than xml are left out: their prefix would mean nothing in the next stream.
func Parse(b []byte, l Limits) (*Element, error) {
	l = l.withDefaults()
	if len(b) > l.Bytes {
		return nil, ErrTooLarge
	}
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("utf-8: %w", ErrSyntax)
	}
	return parse(string(b), l, scope{})
}

// parse reads s, whose bytes are UTF-8 and within the limit.
func parse(s string, l Limits, outer scope) (*Element, error) {
	p := parser{s: s, limits: l, scope: outer, stacks: pool.Get().(*stacks)}
	defer p.release()
	p.slabs()
	p.space()
	e, err := p.element()
	if err != nil {
		return nil, err
	}
	if p.space(); p.i != len(p.s) {
		return nil, p.unexpected()
	}
	return e, nil
}

// A parser reads one element of s from i on, without recursion.
type parser struct {
	s      string
	i      int
	limits Limits
	scope  scope // of the innermost open element

	elements int
	*stacks

	// Slabs from which the tree is cut. One that is kept keeps its neighbours.
	elementSlab []Element
	attrSlab    []Attr
	nodeSlab    []Node
}

// stacks are what a parser works with and does not give away.
type stacks struct {
	open  []frame // from the root to the innermost
	nodes []Node  // of all open elements, innermost last
	attrs []Attr  // of the tag being read; raw, with namespace declarations
}

var pool = sync.Pool{New: func() any { return new(stacks) }}

// release gives the stacks back, holding on to nothing.
func (p *parser) release() {
	const most = 1024
	s := p.stacks
	p.stacks = nil
	if cap(s.nodes) > most || cap(s.attrs) > most {
		return
	}
	clear(s.open[:cap(s.open)])
	clear(s.nodes[:cap(s.nodes)])
	clear(s.attrs[:cap(s.attrs)])
	s.open, s.nodes, s.attrs = s.open[:0], s.nodes[:0], s.attrs[:0]
	pool.Put(s)
}

// slabs makes the slabs in the sizes that a well-formed s needs, within reason.
func (p *parser) slabs() {
	const most = 128
	elements := strings.Count(p.s, "<") - strings.Count(p.s, "</")
	p.elementSlab = make([]Element, 0, max(1, min(elements, most)))
	p.attrSlab = make([]Attr, 0, min(strings.Count(p.s, "="), most))
	p.nodeSlab = make([]Node, 0, max(1, min(elements+elements/4, most)))
}

// A frame is an open element: what its end tag must say, and what to return to after it.
type frame struct {
	element *Element
	tag     string
	nodes   int // where its nodes begin in parser.nodes
	outer   scope
}

// A scope says what names without prefix and with a prefix mean.
type scope struct {
	space    string
	prefixes *binding
}

// A binding is one prefix declaration; inner ones come first.
type binding struct {
	prefix, space string
	outer         *binding
}

func (s scope) lookup(prefix string) (string, bool) {
	for b := s.prefixes; b != nil; b = b.outer {
		if b.prefix == prefix {
			return b.space, true
		}
	}
	return "", false
}

// element reads the element that begins at i.
func (p *parser) element() (*Element, error) {
	for {
		if p.i == len(p.s) {
			return nil, p.unexpected()
		}
		if p.s[p.i] != '<' {
			if len(p.open) == 0 {
				return nil, p.unexpected()
			}
			if err := p.text(); err != nil {
				return nil, err
			}
			continue
		}
		if p.i+1 < len(p.s) && p.s[p.i+1] == '/' {
			root, err := p.endTag()
			if root != nil || err != nil {
				return root, err
			}
			continue
		}
		outer := p.scope
		e, tag, empty, err := p.startTag()
		if err != nil {
			return nil, err
		}
		if len(p.open) > 0 {
			p.nodes = append(p.nodes, Node{Element: e})
		}
		if empty {
			p.scope = outer
			if len(p.open) == 0 {
				return e, nil
			}
			continue
		}
		p.open = append(p.open, frame{e, tag, len(p.nodes), outer})
	}
}

// startTag reads a start tag or an empty element and leaves its scope in p.
func (p *parser) startTag() (e *Element, tag string, empty bool, err error) {
	p.i++ // <
	if p.i < len(p.s) && (p.s[p.i] == '!' || p.s[p.i] == '?') {
		return nil, "", false, ErrForbidden
	}
	if len(p.open) == p.limits.Depth {
		return nil, "", false, ErrTooDeep
	}
	if p.elements++; p.elements > p.limits.Elements {
		return nil, "", false, ErrTooLarge
	}
	if tag, err = p.name(); err != nil {
		return nil, "", false, err
	}
	p.attrs = p.attrs[:0]
	kept := 0
	for {
		spaced := p.space()
		if p.i == len(p.s) {
			return nil, "", false, p.unexpected()
		}
		c := p.s[p.i]
		if c == '>' {
			p.i++
			break
		}
		if c == '/' {
			if p.i++; p.i == len(p.s) || p.s[p.i] != '>' {
				return nil, "", false, p.unexpected()
			}
			p.i++
			empty = true
			break
		}
		if !spaced {
			return nil, "", false, p.unexpected()
		}
		if len(p.attrs) == p.limits.Attrs {
			return nil, "", false, ErrTooLarge
		}
		keep, err := p.attr()
		if err != nil {
			return nil, "", false, err
		}
		if keep {
			kept++
		}
	}
	e, err = p.resolve(tag, kept)
	return e, tag, empty, err
}

// attr reads one attribute into p.attrs. It declares namespaces at once, and reports whether the attribute stays.
func (p *parser) attr() (keep bool, err error) {
	name, err := p.name()
	if err != nil {
		return false, err
	}
	p.space()
	if p.i == len(p.s) || p.s[p.i] != '=' {
		return false, p.unexpected()
	}
	p.i++
	p.space()
	value, err := p.value()
	if err != nil {
		return false, err
	}
	for _, a := range p.attrs {
		if a.Name == name {
			return false, fmt.Errorf("attribute %s twice: %w", name, ErrSyntax)
		}
	}
	p.attrs = append(p.attrs, Attr{name, value})
	prefix, local, prefixed := strings.Cut(name, ":")
	switch {
	case name == "xmlns":
		if value == nsXML || value == nsXMLNS {
			return false, fmt.Errorf("reserved namespace: %w", ErrSyntax)
		}
		p.scope.space = value
		return false, nil
	case !prefixed:
		return true, nil
	case prefix == "xmlns":
		if value == "" || local == "xml" || local == "xmlns" || value == nsXML || value == nsXMLNS {
			return false, fmt.Errorf("reserved prefix %s: %w", local, ErrSyntax)
		}
		p.scope.prefixes = &binding{local, value, p.scope.prefixes}
		return false, nil
	}
	return prefix == "xml", nil
}

// resolve makes the element of a tag once its namespace declarations are known.
func (p *parser) resolve(tag string, kept int) (*Element, error) {
	if len(p.elementSlab) == cap(p.elementSlab) {
		p.elementSlab = make([]Element, 0, 64)
	}
	p.elementSlab = append(p.elementSlab, Element{Name: tag, Space: p.scope.space})
	e := &p.elementSlab[len(p.elementSlab)-1]
	if prefix, local, prefixed := strings.Cut(tag, ":"); prefixed {
		space, declared := p.scope.lookup(prefix)
		if !declared {
			return nil, fmt.Errorf("prefix %s: %w", prefix, ErrSyntax)
		}
		e.Name, e.Space = local, space
	}
	if e.Space == NSClient {
		e.Space = "" // one spelling, so that trees compare
	}
	if len(p.attrs) == kept {
		if kept > 0 {
			e.Attrs = cut(&p.attrSlab, p.attrs)
		}
		return e, nil
	}
	all := p.attrs
	kept = 0
	for _, a := range all {
		prefix, _, prefixed := strings.Cut(a.Name, ":")
		switch {
		case a.Name == "xmlns", prefix == "xmlns":
		case prefixed && prefix != "xml":
			if _, declared := p.scope.lookup(prefix); !declared {
				return nil, fmt.Errorf("prefix %s: %w", prefix, ErrSyntax)
			}
		default:
			all[kept] = a
			kept++
		}
	}
	if kept > 0 {
		e.Attrs = cut(&p.attrSlab, all[:kept])
	}
	return e, nil
}

// endTag reads an end tag. It returns the root when that is what ended.
func (p *parser) endTag() (root *Element, err error) {
	if len(p.open) == 0 {
		return nil, p.unexpected()
	}
	f := p.open[len(p.open)-1]
	rest := p.s[p.i+2:]
	if !strings.HasPrefix(rest, f.tag) {
		return nil, fmt.Errorf("end of %s: %w", f.tag, ErrSyntax)
	}
	p.i += 2 + len(f.tag)
	p.space()
	if p.i == len(p.s) || p.s[p.i] != '>' {
		return nil, p.unexpected()
	}
	p.i++
	if len(p.nodes) > f.nodes {
		f.element.Nodes = cut(&p.nodeSlab, p.nodes[f.nodes:])
		clear(p.nodes[f.nodes:])
		p.nodes = p.nodes[:f.nodes]
	}
	p.scope = f.outer
	p.open = p.open[:len(p.open)-1]
	if len(p.open) == 0 {
		return f.element, nil
	}
	return nil, nil
}

// cut copies values into a slab and returns them as a slice that cannot grow into its neighbour.
func cut[T any](slab *[]T, values []T) []T {
	if cap(*slab)-len(*slab) < len(values) {
		*slab = make([]T, 0, max(len(values), 64))
	}
	n := len(*slab)
	*slab = append(*slab, values...)
	return (*slab)[n:len(*slab):len(*slab)]
}

// text reads character data up to the next tag.
func (p *parser) text() error {
	end := strings.IndexByte(p.s[p.i:], '<')
	if end < 0 {
		p.i = len(p.s)
		return p.unexpected()
	}
	raw := p.s[p.i : p.i+end]
	p.i += end
	t, err := unescape(raw, false)
	if err != nil {
		return err
	}
	p.nodes = append(p.nodes, Node{Text: t})
	return nil
}

// value reads a quoted attribute value.
func (p *parser) value() (string, error) {
	if p.i == len(p.s) || p.s[p.i] != '\'' && p.s[p.i] != '"' {
		return "", p.unexpected()
	}
	end := strings.IndexByte(p.s[p.i+1:], p.s[p.i])
	if end < 0 {
		p.i = len(p.s)
		return "", p.unexpected()
	}
	raw := p.s[p.i+1 : p.i+1+end]
	p.i += end + 2
	return unescape(raw, true)
}

// plain says which bytes unescape need not look at. Bytes from 0x80 on need a look only where U+FFFE and U+FFFF begin.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x100; c++ {
		t[c] = c != '&' && c != '<' && c != '>' && c != 0xEF
	}
	t['\t'], t['\n'] = true, true
	return t
}()

// unescape replaces references and normalises line ends, and in attributes white space (XML 1.0, 2.11 and 3.3.3).
func unescape(s string, attr bool) (string, error) {
	i := 0
	for i < len(s) && plain[s[i]] && !(attr && s[i] < ' ') {
		i++
	}
	if i == len(s) {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	b = append(b, s[:i]...)
	for i < len(s) {
		switch c := s[i]; {
		case c == '&':
			r, n, err := reference(s[i:])
			if err != nil {
				return "", err
			}
			b = utf8.AppendRune(b, r)
			i += n
			continue
		case c == '<', c == '>' && !attr && i >= 2 && s[i-1] == ']' && s[i-2] == ']':
			return "", fmt.Errorf("unescaped %q: %w", c, ErrSyntax)
		case c == '\r':
			if i+1 < len(s) && s[i+1] == '\n' {
				i++
			}
			b = append(b, '\n')
			if attr {
				b[len(b)-1] = ' '
			}
		case attr && (c == '\n' || c == '\t'):
			b = append(b, ' ')
		case c < ' ' && c != '\n' && c != '\t', c == 0xEF && (strings.HasPrefix(s[i:], "\uFFFE") || strings.HasPrefix(s[i:], "\uFFFF")):
			return "", fmt.Errorf("character %q: %w", c, ErrSyntax)
		default:
			b = append(b, c)
		}
		i++
	}
	return string(b), nil
}

// reference reads the reference that s begins with and returns its character and length.
func reference(s string) (rune, int, error) {
	end := strings.IndexByte(s[:min(len(s), 12)], ';')
	if end < 2 {
		return 0, 0, fmt.Errorf("reference: %w", ErrSyntax)
	}
	n := end + 1
	switch name := s[1:end]; name {
	case "amp":
		return '&', n, nil
	case "lt":
		return '<', n, nil
	case "gt":
		return '>', n, nil
	case "apos":
		return '\'', n, nil
	case "quot":
		return '"', n, nil
	default:
		if name[0] != '#' {
			return 0, 0, fmt.Errorf("entity: %w", ErrForbidden)
		}
		r, ok := number(name[1:])
		if !ok {
			return 0, 0, fmt.Errorf("character reference: %w", ErrSyntax)
		}
		return r, n, nil
	}
}

// number reads the number of a character reference and reports whether it is a character that XML allows.
func number(s string) (rune, bool) {
	base := rune(10)
	if strings.HasPrefix(s, "x") {
		base, s = 16, s[1:]
	}
	if s == "" {
		return 0, false
	}
	var r rune
	for _, c := range []byte(s) {
		var d rune
		switch {
		case '0' <= c && c <= '9':
			d = rune(c - '0')
		case base == 16 && 'a' <= c && c <= 'f':
			d = rune(c-'a') + 10
		case base == 16 && 'A' <= c && c <= 'F':
			d = rune(c-'A') + 10
		default:
			return 0, false
		}
		if r = r*base + d; r > utf8.MaxRune {
			return 0, false
		}
	}
	ok := r == '\t' || r == '\n' || r == '\r' || r >= ' ' && utf8.ValidRune(r) && r != 0xFFFE && r != 0xFFFF
	return r, ok
}

// name reads a name with at most one prefix.
func (p *parser) name() (string, error) {
	start, part := p.i, p.i
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case named[c] == letter, named[c] == digit && p.i > part:
		case c == ':' && p.i > part && part == start:
			part = p.i + 1
		case p.i == part:
			return "", p.unexpected()
		default:
			return p.s[start:p.i], nil
		}
		p.i++
	}
	return "", p.unexpected()
}

// named says which bytes names are made of: digits are not the first.
var named = func() (t [256]uint8) {
	for c := range t {
		switch {
		case 'a' <= c|0x20 && c|0x20 <= 'z', c == '_':
			t[c] = letter
		case '0' <= c && c <= '9', c == '-', c == '.':
			t[c] = digit
		}
	}
	return t
}()

const (
	letter = 1
	digit  = 2
)

// space skips white space and reports whether there was any.
func (p *parser) space() bool {
	start := p.i
	for p.i < len(p.s) && isSpace(p.s[p.i]) {
		p.i++
	}
	return p.i > start
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func (p *parser) unexpected() error {
	if p.i >= len(p.s) {
		return fmt.Errorf("unexpected end: %w", ErrSyntax)
	}
	return fmt.Errorf("unexpected %q: %w", p.s[p.i], ErrSyntax)
}
