package xmpp

// IQ makes an iq; from and to may be empty.
func IQ(typ, id, from, to string, payload ...*Element) *Element {
	return stanza("iq", typ, id, from, to, payload)
}

// Message makes a message; all four may be empty.
func Message(typ, id, from, to string, payload ...*Element) *Element {
	return stanza("message", typ, id, from, to, payload)
}

// Presence makes a presence. That of an available occupant has no type.
func Presence(typ, id, from, to string, payload ...*Element) *Element {
	return stanza("presence", typ, id, from, to, payload)
}

func stanza(name, typ, id, from, to string, payload []*Element) *Element {
	e := &Element{Name: name, Attrs: make([]Attr, 0, 4)}
	for _, a := range [...]Attr{{"type", typ}, {"id", id}, {"from", from}, {"to", to}} {
		if a.Value != "" {
			e.Attrs = append(e.Attrs, a)
		}
	}
	return e.Add(payload...)
}

// Result makes the successful answer to an iq: same id, addresses exchanged.
func Result(req *Element, payload ...*Element) *Element {
	return stanza("iq", "result", req.Attr("id"), req.Attr("to"), req.Attr("from"), payload)
}

// IsStanza reports whether e is an iq, message or presence: what stream management counts.
func (e *Element) IsStanza() bool {
	if e == nil || e.namespace() != NSClient {
		return false
	}
	return e.Name == "iq" || e.Name == "presence" || e.Name == "message"
}

// IsRequest reports whether e is an iq that must be answered.
func (e *Element) IsRequest() bool {
	if !e.Is(NSClient, "iq") {
		return false
	}
	t := e.Attr("type")
	return t == "get" || t == "set"
}
