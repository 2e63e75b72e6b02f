package session

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mellium "mellium.im/sasl"

	"plenum/wire/xmpp"
)

// peer is a service on TCP, byte by byte.
type peer struct {
	*testing.T
	net.Conn
}

// connect makes a pipe to the server; a pipe has no address and counts as a stranger.
func (b *bed) connect() *peer {
	b.Helper()
	here, there := net.Pipe()
	b.srv.accept(there)
	b.Cleanup(func() { here.Close() })
	return &peer{b.T, here}
}

func (p *peer) send(s string) {
	p.Helper()
	if _, err := io.WriteString(p, s); err != nil {
		p.Fatalf("send %.80s: %v", s, err)
	}
}

// want compares what comes next, up to the last character of want, with want; TOKEN stands for 24 digits.
func (p *peer) want(want string) {
	p.Helper()
	n := len(want) + strings.Count(want, "TOKEN")*(24-len("TOKEN"))
	got := make([]byte, n)
	if m, err := io.ReadFull(p, got); err != nil {
		p.Fatalf("got  %s\nwant %s\n%v", got[:m], want, err)
	}
	if text := hexadecimal.ReplaceAllString(string(got), "TOKEN"); text != want {
		p.Fatalf("got  %s\nwant %s", text, want)
	}
}

// until reads up to and including the text given and returns it.
func (p *peer) until(text string) string {
	p.Helper()
	var got []byte
	b := make([]byte, 1)
	for !bytes.HasSuffix(got, []byte(text)) {
		if _, err := p.Read(b); err != nil {
			p.Fatalf("got %s, want %s: %v", got, text, err)
		}
		got = append(got, b...)
	}
	return string(got)
}

const (
	// What the Java bridge sends (real stack, colibri2, part A).
	bridgeOpen = `<stream:stream xmlns='jabber:client' to='auth.localhost' xmlns:stream='http://etherx.jabber.org/streams' version='1.0' from='jvb@auth.localhost' xml:lang='en'>`
	bridgeBind = `<iq id='418YC-6' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'></bind></iq>`
	streamOut  = `<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' from='auth.localhost' id='TOKEN' version='1.0' xml:lang='en'>`
)

// scram logs in as jvb.
func (p *peer) scram(password string) (success bool) {
	p.Helper()
	c := mellium.NewClient(mellium.ScramSha1, mellium.Credentials(func() ([]byte, []byte, []byte) { return []byte("jvb"), []byte(password), nil }))
	_, out, err := c.Step(nil)
	if err != nil {
		p.Fatal(err)
	}
	p.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>` + base64.StdEncoding.EncodeToString(out) + `</auth>`)
	p.until(`<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>`)
	in, _ := base64.StdEncoding.DecodeString(strings.TrimSuffix(p.until(`</challenge>`), `</challenge>`))
	_, out, err = c.Step(in)
	if err != nil {
		p.Fatal(err)
	}
	p.send(`<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>` + base64.StdEncoding.EncodeToString(out) + `</response>`)
	if got := p.until(`>`); got != `<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>` {
		if got != `<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>` {
			p.Fatal(got)
		}
		p.until(`</failure>`)
		return false
	}
	in, _ = base64.StdEncoding.DecodeString(strings.TrimSuffix(p.until(`</success>`), `</success>`))
	if _, _, err := c.Step(in); err != nil {
		p.Fatalf("the server's signature: %v", err)
	}
	return true
}

// The login of the Java bridge and what it asks first, without TLS.
func TestBridgeLogin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		p := b.connect()
		p.send(bridgeOpen)
		p.want(streamOut)
		p.want(`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>SCRAM-SHA-256</mechanism><mechanism xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>SCRAM-SHA-1</mechanism></mechanisms></stream:features>`)
		if p.scram("wrong") {
			t.Fatal("logged in with a wrong password")
		}
		if !p.scram("secret") {
			t.Fatal("not logged in")
		}
		p.send(bridgeOpen)
		p.want(streamOut)
		p.want(`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><sm xmlns='urn:xmpp:sm:3'/></stream:features>`)
		p.send(bridgeBind)
		p.want(`<iq xmlns='jabber:client' type='result' id='418YC-6'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid xmlns='urn:ietf:params:xml:ns:xmpp-bind'>jvb@auth.localhost/TOKEN</jid></bind></iq>`)
		p.send(`<enable xmlns='urn:xmpp:sm:3' resume='true'/>`)
		p.want(`<enabled xmlns='urn:xmpp:sm:3' id='TOKEN' resume='true' max='15'/>`)
		p.send(`<iq id='418YC-8' type='get'><query xmlns='jabber:iq:roster'></query></iq>`)
		p.want(`<iq xmlns='jabber:client' type='result' id='418YC-8' to='jvb@auth.localhost/TOKEN'><query xmlns='jabber:iq:roster'/></iq>`)
		p.send(`<presence id='a'/><presence id='b'/><r xmlns='urn:xmpp:sm:3'/>`)
		p.want(`<a xmlns='urn:xmpp:sm:3' h='3'/>`)
		s := b.h.session()
		if s.Account() != "jvb@auth.localhost" {
			t.Errorf("account %q", s.Account())
		}
		p.send(`</stream:stream>`)
		p.want(`</stream:stream>`)
		<-s.done
		if got := b.h.take(); got != "opened; presence a; presence b; closed" {
			t.Errorf("events: %s", got)
		}
	})
}

// join logs in as jvb and binds a resource.
func (p *peer) join(resource string) (token string) {
	p.Helper()
	p.send(bridgeOpen)
	p.until(`</stream:features>`)
	p.scram("secret")
	p.send(bridgeOpen)
	p.until(`</stream:features>`)
	p.send(`<iq id='1' type='set'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>` + resource + `</resource></bind></iq>`)
	p.until(`</iq>`)
	p.send(`<enable xmlns='urn:xmpp:sm:3' resume='true'/>`)
	return hexadecimal.FindString(p.until(`/>`))
}

// A service that comes back under its name replaces itself, also while the old session hibernates.
func TestConflict(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		first := b.connect()
		first.join("focus")
		old := b.h.session()
		first.Close()
		synctest.Wait()
		if !old.Hibernating() {
			t.Fatal("does not hibernate")
		}
		second := b.connect()
		second.join("focus")
		if s := b.h.session(); s == old || b.srv.Session(s.JID()) != s || s.JID() != old.JID() {
			t.Error("not replaced")
		}
		third := b.connect()
		told := make(chan string)
		go func() { told <- second.until(`</stream:stream>`) }()
		third.join("focus")
		if got, want := <-told, fmt.Sprintf(streamErrorXML, "conflict")+`</stream:stream>`; got != want {
			t.Errorf("got %s", got)
		}
		if got := b.h.take(); got != "opened; closed; opened; closed; opened" {
			t.Errorf("events: %s", got)
		}
	})
}

func TestServiceHibernatesBriefly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		p := b.connect()
		p.join("x")
		s := b.h.session()
		p.Close()
		time.Sleep(14 * time.Second)
		if !s.Hibernating() || b.srv.Session(s.JID()) == nil {
			t.Error("gone too early")
		}
		time.Sleep(2 * time.Second)
		if b.srv.Session(s.JID()) != nil {
			t.Error("still there")
		}
	})
}

func TestServiceResumes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		p := b.connect()
		token := p.join("x")
		s := b.h.session()
		p.Close()
		synctest.Wait()
		s.Send(message("gap"))
		p = b.connect()
		p.send(bridgeOpen)
		p.until(`</stream:features>`)
		p.scram("secret")
		p.send(bridgeOpen)
		p.until(`</stream:features>`)
		p.send(`<resume xmlns='urn:xmpp:sm:3' h='0' previd='` + token + `'/>`)
		p.want(`<resumed xmlns='urn:xmpp:sm:3' previd='TOKEN' h='0'/>`)
		p.want(`<message xmlns='jabber:client' id='gap'/>`)
	})
}

func TestBadTCPInput(t *testing.T) {
	for _, tt := range []struct{ name, in, condition string }{
		{"no stream", `<message/>`, "not-well-formed"},
		{"doctype", `<!DOCTYPE x><stream:stream>`, "restricted-xml"},
		{"unknown host", strings.ReplaceAll(bridgeOpen, "to='auth.localhost'", "to='elsewhere'"), "host-unknown"},
		{"no host", strings.ReplaceAll(bridgeOpen, "to='auth.localhost'", ""), "host-unknown"},
		{"stanza before auth", bridgeOpen + `<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>`, "not-authorized"},
		{"oversized", bridgeOpen + `<auth>` + strings.Repeat("x", 300<<10), "policy-violation"},
		{"plain where others can read", bridgeOpen + strings.Repeat(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGp2YgBzZWNyZXQ=</auth>`, 3), "policy-violation"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBed(t)
				p := b.connect()
				go io.WriteString(p, tt.in)
				got := p.until(`</stream:stream>`)
				if want := fmt.Sprintf(streamErrorXML, tt.condition) + `</stream:stream>`; !strings.HasSuffix(got, want) || !strings.Contains(got, "<stream:stream ") {
					t.Errorf("got %s\nwant %s", got, want)
				}
				if _, err := p.Read(make([]byte, 1)); err == nil {
					t.Error("the socket is open")
				}
				if b.h.take() != "" {
					t.Error("a session was opened")
				}
			})
		})
	}
}

// STARTTLS on a real socket: optional on loopback, and what came before it is forgotten.
func TestStartTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t, func(c *Config) {
		c.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- b.srv.Serve(ctx, l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t, c}
	p.send(bridgeOpen)
	if got := p.until(`</stream:features>`); !strings.Contains(got, "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>") || !strings.Contains(got, "PLAIN") {
		t.Errorf("features on loopback: %s", got)
	}
	p.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
	p.until(`<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
	p.Conn = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	p.send(bridgeOpen)
	if got := p.until(`</stream:features>`); strings.Contains(got, "starttls") {
		t.Errorf("features after TLS: %s", got)
	}
	p.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGp2YgBzZWNyZXQ=</auth>`)
	p.until(`<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>`)
	p.send(bridgeOpen)
	p.until(`</stream:features>`)
	p.send(bridgeBind)
	p.until(`</iq>`)
	if s := b.h.session(); s.Remote() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("remote %v", s.Remote())
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	p.Close()

	// A stranger must use TLS.
	q := b.connect()
	q.send(bridgeOpen)
	if got := q.until(`</stream:features>`); !strings.Contains(got, "<required") || strings.Contains(got, "mechanism") {
		t.Errorf("features for a stranger: %s", got)
	}
	go io.WriteString(q, `<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGp2YgBzZWNyZXQ=</auth>`)
	if got := q.until(`</stream:stream>`); !strings.Contains(got, "<stream:error") {
		t.Errorf("a login without TLS: %s", got)
	}
}

// FuzzSession sends bytes to a server that is waiting for a login, and to a bound session.
func FuzzSession(f *testing.F) {
	f.Add([]byte(bridgeOpen), false)
	f.Add([]byte(`<presence to='a@b/c'><x/></presence><r xmlns='urn:xmpp:sm:3'/><a xmlns='urn:xmpp:sm:3' h='1'/>`), true)
	f.Add([]byte(`<enable xmlns='urn:xmpp:sm:3' resume='1'/><enable xmlns='urn:xmpp:sm:3'/><resume xmlns='urn:xmpp:sm:3'/>`), true)
	f.Add([]byte(`</stream:stream>`), true)
	f.Add([]byte(`<!DOCTYPE a>`), false)
	f.Fuzz(func(t *testing.T, in []byte, bound bool) {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			p := b.connect()
			if bound {
				p.join("x")
			}
			go io.Copy(io.Discard, p)
			p.Write(in)
			p.Close()
			time.Sleep(time.Minute)
			if n := b.srv.Stats(); n.Sessions != 0 || n.HalfOpen != 0 {
				t.Errorf("left over: %+v", n)
			}
		})
	})
}

// BenchmarkSend is one broadcast stanza to one more receiver, from Send to the socket.
func BenchmarkSend(b *testing.B) {
	f := xmpp.NewFrame(xmpp.Presence("", "", "room@conference.localhost/aaaa1111", "").AddText(strings.Repeat("x", 800)))
	q := queue{maxFrames: 8192, maxBytes: 4 << 20, managed: true}
	s := &wsSocket{}
	buf := make([]byte, 0, 2*batchBytes)
	b.ReportAllocs()
	n := uint32(0)
	for b.Loop() {
		q.push(f)
		if n++; n%64 == 0 {
			buf, _ = q.take(buf[:0], s, 0)
			q.ack(n)
		}
	}
}
