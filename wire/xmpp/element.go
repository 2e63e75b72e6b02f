package xmpp

import (
	"strconv"
	"strings"
)

// An Element is one XML element with resolved namespaces. Trees are built once and then read:
// an element that has been sent, stored or shared is never modified; use Clone first.
type Element struct {
	Name  string // local name, without prefix
	Space string // namespace; the empty string means NSClient
	Attrs []Attr
	Nodes []Node // children and text in document order
}

// An Attr is one attribute. Prefixed attributes keep their prefix in Name ("xml:lang").
// Namespace declarations are not attributes: they are in Element.Space.
type Attr struct{ Name, Value string }

// A Node is a child element, or text when Element is nil.
type Node struct {
	Element *Element
	Text    string
}

// New makes an element with the attributes given as name, value pairs. A pair with an empty value is left out.
func New(space, name string, pairs ...string) *Element {
	if len(pairs)%2 != 0 {
		panic("xmpp: attribute without value")
	}
	e := &Element{Name: name, Space: space}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			e.Attrs = append(e.Attrs, Attr{pairs[i], pairs[i+1]})
		}
	}
	return e
}

// Add appends children, skipping nil ones, and returns e.
func (e *Element) Add(children ...*Element) *Element {
	for _, c := range children {
		if c != nil {
			e.Nodes = append(e.Nodes, Node{Element: c})
		}
	}
	return e
}

// AddText appends text and returns e.
func (e *Element) AddText(s string) *Element {
	if s != "" {
		e.Nodes = append(e.Nodes, Node{Text: s})
	}
	return e
}

// Attr returns the value of an attribute, or the empty string.
func (e *Element) Attr(name string) string {
	v, _ := e.LookupAttr(name)
	return v
}

// LookupAttr returns the value of an attribute and whether it is there.
func (e *Element) LookupAttr(name string) (string, bool) {
	if e == nil {
		return "", false
	}
	for _, a := range e.Attrs {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// SetAttr sets an attribute; an empty value removes it. It returns e.
func (e *Element) SetAttr(name, value string) *Element {
	for i, a := range e.Attrs {
		if a.Name != name {
			continue
		}
		if value == "" {
			e.Attrs = append(e.Attrs[:i:i], e.Attrs[i+1:]...)
		} else {
			e.Attrs[i].Value = value
		}
		return e
	}
	if value != "" {
		e.Attrs = append(e.Attrs, Attr{name, value})
	}
	return e
}

// SetInt sets an attribute to a decimal number and returns e.
func (e *Element) SetInt(name string, value int64) *Element {
	return e.SetAttr(name, strconv.FormatInt(value, 10))
}

// Is reports whether e has this namespace and name. A nil element is nothing.
func (e *Element) Is(space, name string) bool {
	return e != nil && e.Name == name && e.namespace() == orClient(space)
}

// Child returns the first child with this namespace and name, or nil.
func (e *Element) Child(space, name string) *Element {
	for c := range e.Children {
		if c.Is(space, name) {
			return c
		}
	}
	return nil
}

// ChildNamed returns the first child with this local name in any namespace, or nil. Several extensions
// of Jitsi's clients carry no namespace of their own.
func (e *Element) ChildNamed(name string) *Element {
	for c := range e.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Children yields the child elements in order; it is used with range.
func (e *Element) Children(yield func(*Element) bool) {
	if e == nil {
		return
	}
	for _, n := range e.Nodes {
		if n.Element != nil && !yield(n.Element) {
			return
		}
	}
}

// First returns the first child element, or nil.
func (e *Element) First() *Element {
	for c := range e.Children {
		return c
	}
	return nil
}

// Text returns the text directly inside e, without that of its children.
func (e *Element) Text() string {
	if e == nil {
		return ""
	}
	if len(e.Nodes) == 1 {
		return e.Nodes[0].Text
	}
	var b strings.Builder
	for _, n := range e.Nodes {
		if n.Element == nil {
			b.WriteString(n.Text)
		}
	}
	return b.String()
}

// Clone returns a copy whose attributes and list of nodes may be changed; the children themselves are shared.
func (e *Element) Clone() *Element {
	c := &Element{Name: e.Name, Space: e.Space}
	c.Attrs = append([]Attr(nil), e.Attrs...)
	c.Nodes = append([]Node(nil), e.Nodes...)
	return c
}

// Remove drops the children for which drop is true and returns e.
func (e *Element) Remove(drop func(*Element) bool) *Element {
	kept := e.Nodes[:0:0]
	for _, n := range e.Nodes {
		if n.Element == nil || !drop(n.Element) {
			kept = append(kept, n)
		}
	}
	e.Nodes = kept
	return e
}

func (e *Element) namespace() string { return orClient(e.Space) }

func orClient(space string) string {
	if space == "" {
		return NSClient
	}
	return space
}

// String returns e as Append writes it, for logs and tests.
func (e *Element) String() string { return string(e.Append(nil)) }

// Append writes e as a top-level element: the root always carries a literal xmlns, and so does every
// element that is not in jabber:client or whose parent is not. The real client selects children by a
// literal xmlns attribute, so namespaces are never inherited or prefixed;
// stream features and errors are the exception, as every client expects them with the stream prefix.
func (e *Element) Append(dst []byte) []byte { return e.append(dst, "") }

func (e *Element) append(dst []byte, parent string) []byte {
	space := e.namespace()
	name := e.Name
	if space == NSStream {
		name = "stream:" + name
	}
	dst = append(dst, '<')
	dst = append(dst, name...)
	switch {
	case space == NSStream:
		dst = append(dst, ` xmlns:stream='`+NSStream+`' xmlns='`+NSClient+`'`...)
		space = NSClient
	case space != NSClient || parent != NSClient:
		dst = append(dst, " xmlns='"...)
		dst = appendEscaped(dst, space)
		dst = append(dst, '\'')
	}
	for _, a := range e.Attrs {
		dst = append(dst, ' ')
		dst = append(dst, a.Name...)
		dst = append(dst, "='"...)
		dst = appendEscaped(dst, a.Value)
		dst = append(dst, '\'')
	}
	if len(e.Nodes) == 0 {
		return append(dst, "/>"...)
	}
	dst = append(dst, '>')
	for _, n := range e.Nodes {
		if n.Element != nil {
			dst = n.Element.append(dst, space)
		} else {
			dst = appendEscaped(dst, n.Text)
		}
	}
	dst = append(dst, "</"...)
	dst = append(dst, name...)
	return append(dst, '>')
}

// appendEscaped escapes text for content and for attributes in either kind of quotes. Tabs and line
// ends are kept as character references, so that attribute normalisation does not turn them into spaces.
func appendEscaped(dst []byte, s string) []byte {
	start := 0
	for i := 0; i < len(s); i++ {
		var esc string
		switch s[i] {
		case '&':
			esc = "&amp;"
		case '<':
			esc = "&lt;"
		case '>':
			esc = "&gt;"
		case '\'':
			esc = "&apos;"
		case '"':
			esc = "&quot;"
		case '\t':
			esc = "&#9;"
		case '\n':
			esc = "&#10;"
		case '\r':
			esc = "&#13;"
		default:
			if s[i] >= ' ' {
				continue
			}
			esc = "\uFFFD" // XML has no way to write it, and one such byte would end the reader's stream
		}
		dst = append(dst, s[start:i]...)
		dst = append(dst, esc...)
		start = i + 1
	}
	return append(dst, s[start:]...)
}
