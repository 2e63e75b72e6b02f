package signaling

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"plenum/signaling/rooms"
	"plenum/signaling/session"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// routed is a router with rooms and one local session of a guest.
type routed struct {
	*testing.T
	*router
	mu  sync.Mutex
	got []string
	s   *session.Session
}

func newRouted(t *testing.T, account string, stock bool) *routed {
	t.Helper()
	cfg := &Config{Domain: "localhost", Shard: "muc-1", Release: "7"}
	n := newNames("localhost")
	r := &routed{T: t, router: &router{cfg: cfg, names: n, stock: stock, life: t.Context(), services: new(serviceList)}}
	r.services.Store(&[]Service{{Type: "turns", Host: "turn.example", Port: "443", Transport: "tcp", Username: "u", Password: "p", Restricted: "1"}})
	r.sessions = session.New(session.Config{Domain: "localhost", Handler: r.router})
	r.hall = newHall(hallConfig{Domain: "localhost", Stock: stock, Deliver: func(to jid.JID, f *xmpp.Frame) bool {
		if to == r.s.JID() {
			return r.s.Send(f)
		}
		return false
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.hall.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	address := "aaaa1111-1111-4111-8111-111111111111@localhost/r"
	if account != "" {
		address = account + "/r"
	}
	r.s = session.Local(session.Identity{JID: jid.MustParse(address), Account: account, Remote: netip.MustParseAddr("192.0.2.1")},
		func(f *xmpp.Frame) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.got = append(r.got, string(f.Bytes))
			return true
		})
	return r
}

// ask sends one stanza and returns what comes back at once.
func (r *routed) ask(in string) string {
	r.Helper()
	el, err := xmpp.Parse([]byte(in), xmpp.Limits{})
	if err != nil {
		r.Fatalf("%s: %v", in, err)
	}
	el.SetAttr("from", r.s.JID().String())
	r.Stanza(r.s, el)
	r.mu.Lock()
	defer r.mu.Unlock()
	out := fmt.Sprint(r.got)
	r.got = nil
	return out[1 : len(out)-1]
}

func TestRouter(t *testing.T) {
	const me = "aaaa1111-1111-4111-8111-111111111111@localhost/r"
	refused := func(from, condition, typ string) string {
		return `<iq xmlns='jabber:client' type='error' id='1' from='` + from + `' to='` + me + `'><error type='` + typ + `'><` + condition + ` xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>`
	}
	for _, tt := range []struct{ name, in, want string }{
		{"ping", `<iq type='get' id='1' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>`,
			`<iq xmlns='jabber:client' type='result' id='1' from='localhost' to='` + me + `'/>`},
		{"ping without address", `<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>`,
			`<iq xmlns='jabber:client' type='result' id='1' to='` + me + `'/>`},
		{"services", `<iq type='get' id='1' to='localhost'><services xmlns='urn:xmpp:extdisco:2'/></iq>`,
			`<iq xmlns='jabber:client' type='result' id='1' from='localhost' to='` + me + `'><services xmlns='urn:xmpp:extdisco:2'><service xmlns='urn:xmpp:extdisco:2' type='turns' host='turn.example' port='443' transport='tcp' username='u' password='p' restricted='1'/></services></iq>`},
		{"features", `<iq type='get' id='1' to='localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>`,
			`<iq xmlns='jabber:client' type='result' id='1' from='localhost' to='` + me + `'><query xmlns='http://jabber.org/protocol/disco#info'>` +
				`<identity xmlns='http://jabber.org/protocol/disco#info' category='server' type='im' name='plenum'/>` +
				`<identity xmlns='http://jabber.org/protocol/disco#info' category='server' type='shard' name='muc-1'/>` +
				`<identity xmlns='http://jabber.org/protocol/disco#info' category='server' type='release' name='7'/>` +
				`<identity xmlns='http://jabber.org/protocol/disco#info' category='component' type='room_metadata' name='metadata.localhost'/>` +
				`<feature xmlns='http://jabber.org/protocol/disco#info' var='urn:xmpp:ping'/>` +
				`<feature xmlns='http://jabber.org/protocol/disco#info' var='http://jabber.org/protocol/disco#info'/>` +
				`<feature xmlns='http://jabber.org/protocol/disco#info' var='http://jabber.org/protocol/disco#items'/>` +
				`<feature xmlns='http://jabber.org/protocol/disco#info' var='urn:xmpp:extdisco:2'/>` +
				`<feature xmlns='http://jabber.org/protocol/disco#info' var='urn:xmpp:extdisco:1'/>` +
				`<feature xmlns='http://jabber.org/protocol/disco#info' var='jabber:iq:version'/></query></iq>`},
		{"unknown query", `<iq type='get' id='1' to='localhost'><query xmlns='jabber:iq:private'/></iq>`, refused("localhost", "service-unavailable", "cancel")},
		{"unknown set", `<iq type='set' id='1' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>`, refused("localhost", "service-unavailable", "cancel")},
		{"empty", `<iq type='get' id='1' to='localhost'/>`, refused("localhost", "service-unavailable", "cancel")},
		{"another domain", `<iq type='get' id='1' to='elsewhere.example'><ping xmlns='urn:xmpp:ping'/></iq>`, refused("elsewhere.example", "item-not-found", "cancel")},
		{"another guest", `<iq type='get' id='1' to='bbbb2222@localhost/x'><ping xmlns='urn:xmpp:ping'/></iq>`, refused("bbbb2222@localhost/x", "service-unavailable", "cancel")},
		{"a service", `<iq type='get' id='1' to='jvb@auth.localhost/x'><ping xmlns='urn:xmpp:ping'/></iq>`, refused("jvb@auth.localhost/x", "service-unavailable", "cancel")},
		{"bad address", `<iq type='get' id='1' to='@'/>`, refused("@", "jid-malformed", "modify")},
		{"room that does not exist", `<iq type='get' id='1' to='nobody@conference.localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>`, refused("nobody@conference.localhost", "item-not-found", "cancel")},
		{"answer to nobody", `<iq type='result' id='1' to='elsewhere.example'/>`, ""},
		{"error to nobody", `<message type='error' id='1' to='elsewhere.example'/>`, ""},
		{"undirected presence", `<presence id='1'/>`, ""},
		{"focus ping", `<iq type='get' id='1' to='focus.localhost'><ping xmlns='urn:xmpp:ping'/></iq>`, `<iq xmlns='jabber:client' type='result' id='1' from='focus.localhost' to='` + me + `'/>`},
		{"logout", `<iq type='set' id='1' to='focus.localhost'><logout xmlns='http://jitsi.org/protocol/focus'/></iq>`, `<iq xmlns='jabber:client' type='result' id='1' from='focus.localhost' to='` + me + `'><logout xmlns='http://jitsi.org/protocol/focus'/></iq>`},
		// The conference request of the real client, from the recorded trace (real stack, part A, 1.061).
		{"conference", `<iq id="1" to="focus.localhost" type="set" xmlns="jabber:client"><conference machine-uid="01023247f829438ea9e6525d24abdfd6" room="golden@conference.localhost" xmlns="http://jitsi.org/protocol/focus"><property name="rtcstatsEnabled" value="false"/><property name="visitors-version" value="1"/></conference></iq>`,
			`<iq xmlns='jabber:client' type='result' id='1' from='focus.localhost' to='` + me + `'><conference xmlns='http://jitsi.org/protocol/focus' room='golden@conference.localhost' ready='true' focusjid='focus@auth.localhost'><property xmlns='http://jitsi.org/protocol/focus' name='authentication' value='false'/><property xmlns='http://jitsi.org/protocol/focus' name='visitors-supported' value='false'/></conference></iq>`},
		{"conference of a tenant", `<iq id="1" to="focus.localhost" type="set"><conference room="golden@conference.school.localhost" xmlns="http://jitsi.org/protocol/focus"/></iq>`,
			`<iq xmlns='jabber:client' type='result' id='1' from='focus.localhost' to='` + me + `'><conference xmlns='http://jitsi.org/protocol/focus' room='golden@conference.school.localhost' ready='true' focusjid='focus@auth.localhost'><property xmlns='http://jitsi.org/protocol/focus' name='authentication' value='false'/><property xmlns='http://jitsi.org/protocol/focus' name='visitors-supported' value='false'/></conference></iq>`},
		{"conference without room", `<iq id="1" to="focus.localhost" type="set"><conference xmlns="http://jitsi.org/protocol/focus"/></iq>`,
			`<iq xmlns='jabber:client' type='error' id='1' from='focus.localhost' to='` + me + `'><error type='modify'><bad-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>No &apos;room&apos; specified.</text></error></iq>`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newRouted(t, "", false).ask(tt.in); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// The push names only what works: every identity switches something on in the client.
func TestPush(t *testing.T) {
	r := newRouted(t, "", false)
	r.Opened(r.s)
	want := `<message xmlns='jabber:client' from='localhost' to='aaaa1111-1111-4111-8111-111111111111@localhost/r'><query xmlns='http://jabber.org/protocol/disco#info'>` +
		`<identity xmlns='http://jabber.org/protocol/disco#info' category='server' type='im' name='plenum'/>` +
		`<identity xmlns='http://jabber.org/protocol/disco#info' category='server' type='shard' name='muc-1'/>` +
		`<identity xmlns='http://jabber.org/protocol/disco#info' category='server' type='release' name='7'/>` +
		`<identity xmlns='http://jabber.org/protocol/disco#info' category='component' type='room_metadata' name='metadata.localhost'/>` +
		`<feature xmlns='http://jabber.org/protocol/disco#info' var='urn:xmpp:ping'/></query></message>`
	if len(r.got) != 1 || r.got[0] != want {
		t.Errorf("got  %s\nwant %s", r.got, want)
	}
	service := newRouted(t, "jvb@auth.localhost", false)
	if service.Opened(service.s); len(service.got) != 0 {
		t.Errorf("a service is told %s", service.got)
	}
}

func TestStockFocusIsAsked(t *testing.T) {
	r := newRouted(t, "", true)
	in := `<iq id="1" to="focus.localhost" type="set"><conference room="golden@conference.localhost" xmlns="http://jitsi.org/protocol/focus"/></iq>`
	if got, want := r.ask(in), `<iq xmlns='jabber:client' type='error' id='1' from='focus.localhost' to='aaaa1111-1111-4111-8111-111111111111@localhost/r'><error type='wait'><remote-server-timeout xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>The focus is not connected</text></error></iq>`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A school opens its rooms at once, and joins them as often as it likes; who opens rooms without end is
// stopped, alone.
func TestRoomsPerAddress(t *testing.T) {
	var c creations
	now := time.Now()
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	n := 0
	for c.allow(a, now) {
		n++
	}
	if n != 100 || !c.allow(b, now) {
		t.Errorf("%d rooms at once", n)
	}
	if !c.allow(a, now.Add(2*time.Second)) || c.allow(a, now.Add(2*time.Second).Add(-time.Second)) {
		t.Error("the allowance does not come back at one a second")
	}
	if one, two := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"); true {
		for c.allow(one, now) {
		}
		if c.allow(two, now) {
			t.Error("the addresses of one network count apart")
		}
	}

	r := newRouted(t, "", false)
	for range 200 {
		if _, err := r.conference(t.Context(), "class@conference.localhost", a); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for i := 0; err == nil && i < 200; i++ {
		_, err = r.conference(t.Context(), fmt.Sprintf("room%d@conference.localhost", i), a)
	}
	if err == nil || stanzaError(err).Condition != xmpp.ResourceConstraint {
		t.Errorf("200 new rooms from one address: %v", err)
	}
	if _, err := r.conference(t.Context(), "class@conference.localhost", a); err != nil {
		t.Errorf("a room that exists: %v", err)
	}
}

// slowOwner gives no lease until it is open.
type slowOwner struct {
	rooms.Memory
	open chan struct{}
}

func (o *slowOwner) Acquire(ctx context.Context, room jid.JID) (rooms.Lease, error) {
	select {
	case <-o.open:
		return o.Memory.Acquire(ctx, room)
	case <-ctx.Done():
		return rooms.Lease{}, ctx.Err()
	}
}

// TestNotReady: a room whose lease takes long is not refused; the client asks again (ladder step 13).
func TestNotReady(t *testing.T) {
	r := newRouted(t, "", false)
	slow := &slowOwner{open: make(chan struct{})}
	r.hall.cfg.Owner = slow
	remote := netip.MustParseAddr("192.0.2.1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if c, err := r.conference(ctx, "late@conference.localhost", remote); err != nil || c.Ready || c.FocusJID == "" {
		t.Errorf("while it takes: %+v, %v", c, err)
	}
	close(slow.open)
	if c, err := r.conference(t.Context(), "late@conference.localhost", remote); err != nil || !c.Ready {
		t.Errorf("asked again: %+v, %v", c, err)
	}
}
