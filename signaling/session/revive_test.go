package session

import (
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"plenum/wire/jid"
)

var tokenOf = regexp.MustCompile(`<enabled [^>]*id='([\w-]+)'`)

// joinSealed is join for a server with a ResumeKey; it returns the token.
func (c *client) joinSealed() string {
	c.Helper()
	c.login()
	c.send(bindIn)
	c.recv()
	c.send(enableIn)
	m := tokenOf.FindStringSubmatch(c.recv())
	if m == nil {
		c.Fatal("no token")
	}
	return m[1]
}

// A client goes on at a process that never knew it, with its address and with counts that fit.
func TestRevive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		key := func(c *Config) { c.ResumeKey = []byte("secret") }
		before, after := newBed(t, key), newBed(t, key)
		c := before.dial("?room=r")
		first := c.joinSealed()
		address := before.h.session().JID()
		for _, id := range []string{"1", "2", "3"} {
			c.send(`<presence id='` + id + `' xmlns='jabber:client'/>`)
		}
		c.send(askIn)
		// The newest token comes first: whoever has the acknowledgement has the token that counts as far.
		m := tokenOf.FindStringSubmatch(c.recv())
		if m == nil || m[1] == first {
			t.Fatal("no new token")
		}
		c.want(`<a xmlns='urn:xmpp:sm:3' h='3'/>`)
		c.send(`<presence id='4' xmlns='jabber:client'/>`)
		synctest.Wait()
		for token, handled := range map[string]string{m[1]: "3", first: "0"} {
			after.h.take()
			c = after.dial("?room=r&previd=" + token)
			c.login()
			c.send(`<resume h="7" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`)
			if got := c.recv(); got != `<resumed xmlns='urn:xmpp:sm:3' previd='`+token+`' h='`+handled+`'/>` {
				t.Fatal(got)
			}
			c.send(`<presence id='5' xmlns='jabber:client'/>`)
			c.send(askIn)
			if got := c.recv(); !strings.HasPrefix(got, "<enabled") {
				t.Fatal(got)
			}
			s := after.srv.Session(address)
			if s == nil || !s.Revived() || s.Room() != "r" {
				t.Fatalf("session %+v", s)
			}
			if got := after.h.take(); got != "resumed; presence 5" {
				t.Errorf("events: %s", got)
			}
			s.Send(message("x"))
			for !strings.Contains(c.recv(), "id='x'") {
			}
			c.send(`<a h="8" xmlns="urn:xmpp:sm:3"/>`)
			synctest.Wait()
			s.mu.Lock()
			if s.out.len() != 0 {
				t.Error("an acknowledgement that goes on from the old count is not understood")
			}
			s.mu.Unlock()
			s.Close("")
			<-s.done
		}
	})
}

// What does not prove that it had the session gets nothing.
func TestReviveRefuses(t *testing.T) {
	const failed = `<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>`
	bubble(t, func(t *testing.T) {
		b := newBed(t, func(c *Config) { c.ResumeKey = []byte("secret") })
		id, who := strings.Repeat("0", idChars), jid.MustParse("5f6cf4f0-0000-4000-8000-000000000000@localhost/x")
		good := b.srv.sealer.seal(testament{id: id, jid: who}, time.Now())
		c := b.dial("")
		live := c.joinSealed()
		for name, token := range map[string]string{
			"another key":     newSealer([]byte("other")).seal(testament{id: id, jid: who}, time.Now()),
			"old":             b.srv.sealer.seal(testament{id: id, jid: who}, time.Now().Add(-tokenLife-time.Minute)),
			"another id":      strings.Repeat("1", idChars) + good[idChars:],
			"cut":             good[:len(good)-1],
			"another account": b.srv.sealer.seal(testament{id: id, jid: jid.MustParse("jvb@auth.localhost/x")}, time.Now()),
			"a live address":  b.srv.sealer.seal(testament{id: id, jid: b.h.session().JID()}, time.Now()),
			"empty":           "",
		} {
			c := b.dial("?previd=" + token)
			c.login()
			c.send(`<resume h="0" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`)
			if got := c.recv(); got != failed {
				t.Errorf("%s: %s", name, got)
			}
			c.raw.Close()
		}
		if live == "" || b.srv.Stats().Revived != 0 {
			t.Error("revived")
		}
	})
}

func FuzzToken(f *testing.F) {
	s := newSealer([]byte("secret"))
	now := time.Unix(1_800_000_000, 0)
	f.Add(s.seal(testament{strings.Repeat("a", idChars), jid.MustParse("a@localhost/b"), 7}, now))
	f.Fuzz(func(t *testing.T, token string) {
		if got, err := s.open(token, now); err == nil && (got.jid.IsZero() || len(got.id) != idChars) {
			t.Errorf("%+v", got)
		}
	})
}
