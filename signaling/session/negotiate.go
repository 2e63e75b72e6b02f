package session

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"plenum/signaling/auth"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// errGone is the answer to a resumption that comes too late.
var errGone = errors.New("session gone")

// maxLogins is how many logins may fail on one socket.
const maxLogins = 3

// A negotiation takes one socket from its first byte to an address:
//
//	open, features(mechanisms) ── starttls ──► open …
//	auth … success
//	open, features(bind, sm)
//	bind → new session      or      resume → old session
type negotiation struct {
	srv     *Server
	c       *conn
	started bool // our header is out
}

func (n *negotiation) run() (*Session, error) {
	host, bare, err := n.login()
	if err != nil {
		return nil, err
	}
	if err := n.stream(host); err != nil {
		return nil, err
	}
	features := xmpp.New(xmpp.NSStream, "features").Add(
		xmpp.New(xmpp.NSBind, "bind"),
		xmpp.New(xmpp.NSSM, "sm"),
	)
	if err := n.say(features); err != nil {
		return nil, err
	}
	for {
		el, err := n.c.read()
		if err != nil {
			return nil, err
		}
		switch {
		case el.IsRequest() && el.Attr("type") == "set" && el.Child(xmpp.NSBind, "bind") != nil:
			s, err := n.bind(bare, el)
			if s != nil || err != nil {
				return s, err
			}
		case el.Is(xmpp.NSSM, "resume"):
			s, err := n.resume(bare, el)
			if s != nil || err != nil {
				return s, err
			}
		case el.Is(xmpp.NSSM, "enable"):
			if err := n.say(smFailed("unexpected-request")); err != nil {
				return nil, err
			}
		default:
			return nil, unexpected(el)
		}
	}
}

// fail tells the peer what was wrong and ends the stream.
func (n *negotiation) fail(err error) {
	var cond streamError
	switch {
	case errors.As(err, &cond):
	case errors.Is(err, errBye):
	default:
		return // nobody is there, or it was too slow
	}
	var b []byte
	if !n.started {
		b = n.c.sock.header(b, n.srv.cfg.Domain, auth.Token())
	}
	n.c.hurry()
	n.c.sock.write(n.c.sock.farewell(b, string(cond)))
}

// stream waits for the peer's stream to the same host and answers it.
func (n *negotiation) stream(host string) error {
	to, err := n.c.sock.open()
	if err != nil {
		return err
	}
	if !strings.EqualFold(to, host) {
		return streamError("host-unknown")
	}
	return n.c.sock.write(n.c.sock.header(nil, host, auth.Token()))
}

// login returns the host that the peer logged in to and the bare address that it has there.
func (n *negotiation) login() (host string, bare jid.JID, err error) {
	to, err := n.c.sock.open()
	if err != nil {
		return "", jid.JID{}, err
	}
	host = strings.ToLower(to)
	if host != n.srv.cfg.Domain && !n.accounts(host) {
		return "", jid.JID{}, streamError("host-unknown")
	}
	if err := n.offer(host); err != nil {
		return "", jid.JID{}, err
	}
	for failed := 0; failed < maxLogins; {
		el, err := n.c.read()
		if err != nil {
			return "", jid.JID{}, err
		}
		offered, required := n.c.sock.offersTLS()
		switch {
		case el.Is(xmpp.NSTLS, "starttls") && offered:
			if err := n.startTLS(host); err != nil {
				return "", jid.JID{}, err
			}
		case el.Is(xmpp.NSSASL, "auth") && !required:
			bare, err := n.authenticate(el, host)
			if err == nil {
				return host, bare, nil
			}
			var failure saslError
			if !errors.As(err, &failure) {
				return "", jid.JID{}, err
			}
			// The same stream goes on (RFC 6120, section 6.4.5).
			failed++
			if err := n.say(sasl("failure").Add(xmpp.New(xmpp.NSSASL, string(failure)))); err != nil {
				return "", jid.JID{}, err
			}
		default:
			return "", jid.JID{}, unexpected(el)
		}
	}
	return "", jid.JID{}, streamError("policy-violation")
}

func (n *negotiation) accounts(host string) bool {
	return slices.Contains(n.srv.cfg.AccountDomains, host)
}

// offer answers the first stream with our header and the ways to log in.
func (n *negotiation) offer(host string) error {
	features := xmpp.New(xmpp.NSStream, "features")
	offered, required := n.c.sock.offersTLS()
	if offered {
		tls := xmpp.New(xmpp.NSTLS, "starttls")
		if required {
			tls.Add(xmpp.New(xmpp.NSTLS, "required"))
		}
		features.Add(tls)
	}
	if !required {
		ways := sasl("mechanisms")
		for _, m := range n.mechanisms(host) {
			ways.Add(sasl("mechanism").AddText(m))
		}
		features.Add(ways)
	}
	n.started = true
	if err := n.c.sock.write(n.c.sock.header(nil, host, auth.Token())); err != nil {
		return err
	}
	return n.say(features)
}

// mechanisms lists how to log in to host. Passwords in the clear need a channel that nobody reads along.
func (n *negotiation) mechanisms(host string) []string {
	if !n.accounts(host) {
		return []string{"ANONYMOUS"}
	}
	if n.c.sock.secure() {
		return auth.Mechanisms
	}
	return slices.DeleteFunc(slices.Clone(auth.Mechanisms), func(m string) bool { return m == "PLAIN" })
}

func (n *negotiation) startTLS(host string) error {
	if err := n.say(xmpp.New(xmpp.NSTLS, "proceed")); err != nil {
		return err
	}
	if err := n.c.sock.startTLS(); err != nil {
		return err
	}
	n.started = false
	to, err := n.c.sock.open()
	if err != nil {
		return err
	}
	if !strings.EqualFold(to, host) {
		return streamError("host-unknown")
	}
	return n.offer(host)
}

// A saslError is the condition of a failed login (RFC 6120, section 6.5); another attempt may follow.
type saslError string

func (e saslError) Error() string { return "login failed: " + string(e) }

// authenticate runs one login that began with el and returns the peer's bare address.
func (n *negotiation) authenticate(el *xmpp.Element, host string) (jid.JID, error) {
	mechanism := el.Attr("mechanism")
	if !slices.Contains(n.mechanisms(host), mechanism) {
		return jid.JID{}, saslError("invalid-mechanism")
	}
	if mechanism == "ANONYMOUS" {
		bare, err := n.guest(host)
		if err != nil {
			return jid.JID{}, err
		}
		return bare, n.say(sasl("success"))
	}
	x, err := n.srv.cfg.Accounts.NewExchange(mechanism, host)
	if err != nil {
		return jid.JID{}, saslError("invalid-mechanism")
	}
	for first := true; ; first = false {
		in, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(el.Text()), "="))
		var out []byte
		done := false
		switch {
		case err != nil:
			return jid.JID{}, saslError("incorrect-encoding")
		case first && el.Text() == "": // no initial response: ask for it
		default:
			if out, done, err = x.Step(in); err != nil {
				if errors.Is(err, auth.ErrMalformed) {
					return jid.JID{}, saslError("malformed-request")
				}
				return jid.JID{}, saslError("not-authorized")
			}
		}
		data := base64.StdEncoding.EncodeToString(out)
		if done {
			bare, err := jid.Parse(x.Name())
			if err != nil {
				return jid.JID{}, saslError("not-authorized")
			}
			return bare, n.say(sasl("success").AddText(data))
		}
		if err := n.say(sasl("challenge").AddText(data)); err != nil {
			return jid.JID{}, err
		}
		if el, err = n.c.read(); err != nil {
			return jid.JID{}, err
		}
		switch {
		case el.Is(xmpp.NSSASL, "abort"):
			return jid.JID{}, saslError("aborted")
		case !el.Is(xmpp.NSSASL, "response"):
			return jid.JID{}, unexpected(el)
		}
	}
}

// guest makes a new address, or gives the one back that the session to be resumed has: the client logs in
// anew before it resumes and must get the same name.
func (n *negotiation) guest(host string) (jid.JID, error) {
	if s := n.srv.resumable(n.c.previd); s != nil && s.id.Account == "" {
		return s.id.JID.Bare(), nil
	}
	if t, err := n.srv.sealer.open(n.c.previd, time.Now()); err == nil && t.jid.Domain() == host {
		return t.jid.Bare(), nil
	}
	return jid.New(auth.Anonymous(), host, "")
}

// bind gives the peer its full address. It answers itself when the peer may try again.
func (n *negotiation) bind(bare jid.JID, iq *xmpp.Element) (*Session, error) {
	resource := iq.Child(xmpp.NSBind, "bind").Child(xmpp.NSBind, "resource").Text()
	if resource == "" {
		resource = auth.Token()
	}
	full, err := bare.WithResource(resource)
	if err != nil || len(resource) > 128 {
		return nil, n.say(xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.BadRequest}))
	}
	id := n.c.id
	id.JID = full
	if n.accounts(bare.Domain()) {
		id.Account = bare.String()
	}
	s, err := n.srv.bind(n.c, id)
	if err != nil {
		return nil, err
	}
	address := xmpp.New(xmpp.NSBind, "bind").Add(xmpp.New(xmpp.NSBind, "jid").AddText(full.String()))
	s.Send(xmpp.NewFrame(xmpp.IQ("result", iq.Attr("id"), "", "", address)))
	return s, nil
}

// resume continues an old session on this socket. After a failure the peer may bind.
func (n *negotiation) resume(bare jid.JID, el *xmpp.Element) (*Session, error) {
	h, err := handled(el)
	if err != nil {
		return nil, err
	}
	s := n.srv.resumable(el.Attr("previd"))
	if s == nil {
		s, err := n.srv.revive(n.c, bare, el.Attr("previd"), h)
		if errors.Is(err, errToken) {
			return nil, n.say(smFailed(xmpp.ItemNotFound))
		}
		return s, err
	}
	if s.id.JID.Bare() != bare {
		return nil, n.say(smFailed(xmpp.ItemNotFound))
	}
	if s.take(n.c, h, el.Attr("previd")) != nil {
		return nil, n.say(smFailed(xmpp.ItemNotFound))
	}
	n.srv.resumed.Add(1)
	s.log("session resumed")
	return s, nil
}

// resumable returns the session with a resumption token, or nil.
func (srv *Server) resumable(token string) *Session {
	if token == "" {
		return nil
	}
	srv.mu.RLock()
	defer srv.mu.RUnlock()
	return srv.byToken[sessionID(token)]
}

func (n *negotiation) say(el *xmpp.Element) error { return n.c.say(el.Append(nil)) }

func sasl(name string) *xmpp.Element { return xmpp.New(xmpp.NSSASL, name) }

// unexpected is the stream error for an element that has no place yet.
func unexpected(el *xmpp.Element) error {
	if el.IsStanza() {
		return streamError("not-authorized")
	}
	return streamError("unsupported-stanza-type")
}
