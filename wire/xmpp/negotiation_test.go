package xmpp

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"strings"
	"testing"

	"mellium.im/sasl"
)

const (
	wsOpen      = `<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='meet.local' id='s1' version='1.0' xml:lang='en'/>`
	mechanisms  = `<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism><mechanism>ANONYMOUS</mechanism><mechanism>SCRAM-SHA-1</mechanism></mechanisms></stream:features>`
	success     = `<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>`
	afterAuth   = `<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><sm xmlns='urn:xmpp:sm:3'/></stream:features>`
	disco       = `<message from='meet.local'><query xmlns='http://jabber.org/protocol/disco#info'/></message>`
	boundAs     = `<iq type='result' id='_bind_auth_2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>aaaa1111-1111-4111-8111-111111111111@meet.local/rAnn</jid></bind></iq>`
	enabled     = `<enabled xmlns='urn:xmpp:sm:3' id='TOKEN' resume='true' max='60'/>`
	clientOpen  = `<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='meet.local' version='1.0'/>`
	clientTCP   = `<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='meet.local' version='1.0'>`
	anonymous   = `<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='ANONYMOUS'/>`
	bindRequest = `<iq xmlns='jabber:client' type='set' id='_bind_auth_2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`
)

// An exchange is what the server sends and the client's answer, or the error that it ends with.
type exchange struct {
	server, client string
	err            error
}

func run(t *testing.T, cfg NegotiationConfig, start string, steps []exchange) *Negotiation {
	t.Helper()
	n := NewNegotiation(cfg)
	if got := joined(n.Start()); got != start {
		t.Errorf("start: %s, want %s", got, start)
	}
	for i, s := range steps {
		var in *Element
		if strings.HasPrefix(s.server, "<?xml") {
			e, err := NewDecoder(strings.NewReader(s.server), Limits{}).Next()
			if err != nil {
				t.Fatal(err)
			}
			in = e
		} else if e, err := Parse([]byte(s.server), Limits{}); err != nil {
			t.Fatal(err)
		} else {
			in = e
		}
		out, done, err := n.Step(in)
		if joined(out) != s.client || !errors.Is(err, s.err) {
			t.Errorf("%d: %s: %s, %v, want %s, %v", i, s.server, joined(out), err, s.client, s.err)
		}
		if want := i == len(steps)-1 && s.err == nil; done != want {
			t.Errorf("%d: %s: done is %v", i, s.server, done)
		}
	}
	return n
}

func joined(out [][]byte) string {
	var s string
	for _, b := range out {
		s += string(b)
	}
	return s
}

func TestNegotiation(t *testing.T) {
	n := run(t, NegotiationConfig{Domain: "meet.local", StreamManagement: true}, clientOpen, []exchange{
		{wsOpen, "", nil}, {mechanisms, anonymous, nil}, {success, clientOpen, nil}, {wsOpen, "", nil}, {afterAuth, bindRequest, nil}, {disco, "", nil},
		{boundAs, `<enable xmlns='urn:xmpp:sm:3' resume='true'/>`, nil}, {`<r xmlns='urn:xmpp:sm:3'/>`, "", nil}, {enabled, "", nil},
	})
	if n.JID().Resource() != "rAnn" || n.Managed() != "TOKEN" || len(n.Early()) != 1 {
		t.Errorf("%v, %q, %v", n.JID(), n.Managed(), n.Early())
	}
	if _, ok := n.Resumed(); ok {
		t.Error("resumed")
	}

	header := string(Header{From: "meet.local", ID: "s", Version: "1.0"}.Append(nil))
	n = run(t, NegotiationConfig{Domain: "meet.local", Framing: TCP, User: "jvb", Password: "secret", Mechanisms: []string{"PLAIN"}, Resource: "b0"}, clientTCP, []exchange{
		{header, "", nil}, {mechanisms, `<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGp2YgBzZWNyZXQ=</auth>`, nil}, {success, clientTCP, nil}, {header, "", nil},
		{afterAuth, `<iq xmlns='jabber:client' type='set' id='_bind_auth_2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource xmlns='urn:ietf:params:xml:ns:xmpp-bind'>b0</resource></bind></iq>`, nil},
		{boundAs, "", nil},
	})
	if n.Managed() != "" {
		t.Error("managed without asking")
	}
}

func TestResumption(t *testing.T) {
	cfg := NegotiationConfig{Domain: "meet.local", StreamManagement: true, PreviousID: "OLD", Handled: 7}
	resume := `<resume xmlns='urn:xmpp:sm:3' previd='OLD' h='7'/>`
	until := []exchange{{wsOpen, "", nil}, {mechanisms, anonymous, nil}, {success, clientOpen, nil}, {wsOpen, "", nil}, {afterAuth, resume, nil}}
	n := run(t, cfg, clientOpen, append(until, exchange{`<resumed xmlns='urn:xmpp:sm:3' h='12' previd='OLD'/>`, "", nil}))
	if h, ok := n.Resumed(); !ok || h != 12 || n.Managed() != "OLD" || !n.JID().IsZero() {
		t.Errorf("%v, %v, %q, %v", h, ok, n.Managed(), n.JID())
	}
	n = run(t, cfg, clientOpen, append(until, exchange{`<failed xmlns='urn:xmpp:sm:3'/>`, bindRequest, nil},
		exchange{boundAs, `<enable xmlns='urn:xmpp:sm:3' resume='true'/>`, nil}, exchange{`<failed xmlns='urn:xmpp:sm:3'/>`, "", nil}))
	if _, ok := n.Resumed(); ok || n.Managed() != "" {
		t.Error("resumed after all")
	}
	run(t, cfg, clientOpen, append(until, exchange{`<resumed xmlns='urn:xmpp:sm:3'/>`, "", ErrNegotiation}))
}

func TestNegotiationFails(t *testing.T) {
	cfg := NegotiationConfig{Domain: "meet.local"}
	notAuthorized := SASLError{Condition: "not-allowed", Text: "no token"}
	for name, steps := range map[string][]exchange{
		"stanza first": {{`<presence/>`, "", ErrNegotiation}},
		"open twice":   {{wsOpen, "", nil}, {wsOpen, "", ErrNegotiation}},
		"close":        {{`<close xmlns="urn:ietf:params:xml:ns:xmpp-framing" />`, "", ErrClosed}},
		"stream error": {{StreamError{"host-unknown", "x"}.Element().String(), "", StreamError{"host-unknown", "x"}}},
		"failure": {{wsOpen, "", nil}, {mechanisms, anonymous, nil},
			{`<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-allowed/><text>no token</text></failure>`, "", notAuthorized}, {success, "", ErrNegotiation}},
		"no mechanism": {{wsOpen, "", nil}, {`<stream:features xmlns:stream='http://etherx.jabber.org/streams'/>`, "", ErrMechanisms}},
		"bind refused": {{wsOpen, "", nil}, {mechanisms, anonymous, nil}, {success, clientOpen, nil}, {wsOpen, "", nil}, {afterAuth, bindRequest, nil},
			{`<iq type='result' id='_bind_auth_2'/>`, "", ErrNegotiation}},
		"not base64": {{wsOpen, "", nil}, {mechanisms, anonymous, nil}, {`<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>?</challenge>`, "", ErrNegotiation}},
	} {
		t.Run(name, func(t *testing.T) { run(t, cfg, clientOpen, steps) })
	}
}

// TestScram logs in at a server that keeps salted passwords.
func TestScram(t *testing.T) {
	for name, m := range map[string]struct {
		mechanism sasl.Mechanism
		hash      func() hash.Hash
	}{"SCRAM-SHA-1": {sasl.ScramSha1, sha1.New}, "SCRAM-SHA-256": {sasl.ScramSha256, sha256.New}} {
		for _, password := range []string{"secret", "wrong"} {
			salt := []byte("salty")
			server := sasl.NewServer(m.mechanism, func(*sasl.Negotiator) bool { return true }, sasl.SaltedCredentials(
				func(user, _ []byte, _ string) ([]byte, []byte, int64, error) {
					return salt, sasl.SCRAMSaltPassword(m.hash, []byte("secret"), salt, 4096), 4096, nil
				}))
			n := NewNegotiation(NegotiationConfig{Domain: "d", User: "jvb", Password: password, Mechanisms: []string{name}})
			step := func(in *Element) *Element {
				t.Helper()
				out, _, err := n.Step(in)
				if err != nil {
					t.Fatal(err)
				}
				if len(out) == 0 {
					return nil
				}
				e, err := Parse(out[0], Limits{})
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			step(New(NSFraming, "open"))
			reply := step(New(NSStream, "features").Add(New(NSSASL, "mechanisms").Add(New(NSSASL, "mechanism").AddText(name))))
			first, _ := base64.StdEncoding.DecodeString(reply.Text())
			_, challenge, err := server.Step(first)
			if err != nil {
				t.Fatal(err)
			}
			reply = step(New(NSSASL, "challenge").AddText(base64.StdEncoding.EncodeToString(challenge)))
			response, _ := base64.StdEncoding.DecodeString(reply.Text())
			_, final, err := server.Step(response)
			if (err == nil) != (password == "secret") {
				t.Errorf("%s with password %s: %v", name, password, err)
			}
			if err != nil {
				continue
			}
			// A server that does not know the password cannot sign.
			if out, _, err := NewNegotiation(NegotiationConfig{}).Step(New(NSSASL, "success")); err == nil {
				t.Errorf("success before anything: %s", joined(out))
			}
			if reply := step(New(NSSASL, "success").AddText(base64.StdEncoding.EncodeToString(final))); !reply.Is(NSFraming, "open") {
				t.Errorf("%s: %v after success", name, reply)
			}
		}
	}
}

func TestScramServerMustProve(t *testing.T) {
	begin := func() *Negotiation {
		n := NewNegotiation(NegotiationConfig{User: "u", Password: "p", Mechanisms: []string{"SCRAM-SHA-1"}})
		for _, in := range []*Element{New(NSFraming, "open"), New(NSStream, "features").Add(New(NSSASL, "mechanisms").Add(New(NSSASL, "mechanism").AddText("SCRAM-SHA-1")))} {
			if _, _, err := n.Step(in); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	if _, _, err := begin().Step(New(NSSASL, "success")); !errors.Is(err, ErrNegotiation) {
		t.Errorf("success without signature: %v", err)
	}
	for _, challenge := range []string{"", "x", "r=abc", ",,,", "r=abc,s=c2FsdA==,i=99999999999", "r=abc,s=c2FsdA==,i=2000000", "r=abc,s=c2FsdA==,i=0", "r=abc,s=?,i=4096", "m=x,r=a,s=a,i=1"} {
		if _, _, err := begin().Step(New(NSSASL, "challenge").AddText(base64.StdEncoding.EncodeToString([]byte(challenge)))); !errors.Is(err, ErrNegotiation) {
			t.Errorf("%q: %v", challenge, err)
		}
	}
}

func TestEarlyStanzasAreLimited(t *testing.T) {
	n := run(t, NegotiationConfig{Domain: "meet.local"}, clientOpen, []exchange{
		{wsOpen, "", nil}, {mechanisms, anonymous, nil}, {success, clientOpen, nil}, {wsOpen, "", nil}, {afterAuth, bindRequest, nil}, {disco, "", nil}, {boundAs, "", nil}})
	if len(n.Early()) != 1 {
		t.Error(n.Early())
	}
	n = NewNegotiation(NegotiationConfig{})
	n.state = wantBound
	var err error
	for range maxEarly {
		if _, _, err := n.Step(New("", "message")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err = n.Step(New("", "message")); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// FuzzNegotiation lets a server say anything, to clients of all kinds.
func FuzzNegotiation(f *testing.F) {
	challenge := `<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>cj1hLHM9YyxpPTE=</challenge>`
	f.Add(wsOpen + mechanisms + success + wsOpen + afterAuth + disco + boundAs + enabled)
	f.Add(wsOpen + mechanisms + challenge + challenge + success)
	f.Add(wsOpen + mechanisms + success + wsOpen + afterAuth + `<resumed xmlns='urn:xmpp:sm:3' h='1'/>`)
	f.Fuzz(func(t *testing.T, s string) {
		all, err := Parse([]byte("<all>"+s+"</all>"), Limits{})
		if err != nil {
			return
		}
		for _, cfg := range []NegotiationConfig{
			{StreamManagement: true}, {User: "u", Password: "p"}, {PreviousID: "x"}, {User: "u", Mechanisms: []string{"PLAIN"}},
		} {
			n := NewNegotiation(cfg)
			n.Start()
			for e := range all.Children {
				out, done, err := n.Step(e)
				if done && err != nil || err != nil && len(out) > 0 {
					t.Fatalf("%s: %v, %v, %v", e, joined(out), done, err)
				}
				for _, b := range out {
					if _, err := Parse(b, Limits{}); err != nil {
						t.Fatalf("%s: %v", b, err)
					}
				}
			}
		}
	})
}
