package session

import (
	"strconv"

	"plenum/signaling/auth"
	"plenum/wire/xmpp"
)

const nsRoster = "jabber:iq:roster"

// read hands what c brings to the handler, until c ends.
func (s *Session) read(c *conn) error {
	if ws, ok := c.sock.(*wsSocket); ok {
		ws.pong = s.pong
	}
	for {
		el, err := c.read()
		if err != nil {
			return err
		}
		switch {
		case el.IsStanza():
			s.stanza(el)
		case el.Space == xmpp.NSSM:
			err = s.manage(el)
		default:
			err = streamError("unsupported-stanza-type")
		}
		if err != nil {
			return err
		}
	}
}

func (s *Session) pong(frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.pong = frame
	s.wakeLocked()
}

// stanza answers what concerns the session alone and hands on the rest. A stanza counts as handled when
// the handler has returned.
func (s *Session) stanza(el *xmpp.Element) {
	el.SetAttr("from", s.id.JID.String())
	switch {
	case el.IsRequest() && el.Child(xmpp.NSSession, "session") != nil:
		// Not offered; Smack and older clients ask all the same (RFC 3921, section 3).
		s.Send(xmpp.NewFrame(xmpp.Result(el)))
	case el.IsRequest() && el.Attr("type") == "get" && el.Child(nsRoster, "query") != nil:
		s.Send(xmpp.NewFrame(xmpp.Result(el, xmpp.New(nsRoster, "query"))))
	default:
		s.srv.cfg.Handler.Stanza(s, el)
	}
	s.mu.Lock()
	s.in++
	s.mu.Unlock()
}

// manage handles stream management (XEP-0198).
func (s *Session) manage(el *xmpp.Element) error {
	switch el.Name {
	case "enable":
		s.enable(el.Attr("resume"))
	case "r":
		s.mu.Lock()
		if s.out.managed {
			s.out.ackDue = true
			s.wakeLocked()
		}
		s.mu.Unlock()
	case "a":
		h, err := handled(el)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.out.managed {
			return nil
		}
		if s.out.ack(h) != nil {
			return streamError("undefined-condition")
		}
		if s.out.wantsAck() {
			s.wakeLocked()
		}
	case "resume":
		s.control(smFailed("unexpected-request"))
	}
	return nil
}

// enable begins to count. What is still waiting is sent after <enabled/> and is counted by the client.
func (s *Session) enable(resume string) {
	s.mu.Lock()
	again := s.out.managed
	s.mu.Unlock()
	if again {
		s.control(smFailed("unexpected-request"))
		return
	}
	id := ""
	if resume == "true" || resume == "1" {
		id = auth.Token()
		s.srv.mu.Lock()
		s.srv.byToken[id] = s
		s.srv.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.in, s.out.managed = id, 0, true
	enabled := xmpp.New(xmpp.NSSM, "enabled")
	if id != "" {
		enabled = s.enabledLocked()
		s.renews()
	}
	s.out.control = append(s.out.control, enabled.Append(nil))
	s.wakeLocked()
}

func (s *Session) control(el *xmpp.Element) {
	s.Send(xmpp.NewFrame(el))
}

func handled(el *xmpp.Element) (uint32, error) {
	h, err := strconv.ParseUint(el.Attr("h"), 10, 32)
	if err != nil {
		return 0, streamError("bad-format")
	}
	return uint32(h), nil
}

func smFailed(condition string) *xmpp.Element {
	return xmpp.New(xmpp.NSSM, "failed").Add(xmpp.New(xmpp.NSStanzas, condition))
}
