package signaling

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

// TestRecordersAndGateways: a Jibri and a Jigasi log in as theirs do, meet in their breweries, say how they
// are, and are seen by operators until they leave.
func TestRecordersAndGateways(t *testing.T) {
	defer goleak.VerifyNone(t)
	reg := prometheus.NewRegistry()
	s, err := New(Config{HTTP: "127.0.0.1:0", XMPP: "127.0.0.1:0", Accounts: []string{"jibri:one", "jigasi:two"}, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	seen := func() (v struct {
		Rooms struct{ Recorders, Gateways []instance }
	}) {
		t.Helper()
		w := httptest.NewRecorder()
		s.DebugHandler().ServeHTTP(w, httptest.NewRequest("GET", "/debug/", nil))
		if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
			t.Fatalf("%v\n%s", err, w.Body)
		}
		return v
	}
	measured := func(name string) float64 {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == name {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, seen())
			}
		}
	}

	// Jibri: Smack again, so a roster, discovery of the MUC and an undirected presence go before.
	const recorders = "jibribrewery@internal.auth.localhost"
	jibri := login(t, s, "jibri", "one", "jibri")
	jibri.until(`<iq id='1' type='get'><query xmlns='jabber:iq:roster'/></iq>`, ` id='1'`)
	jibri.write(`<presence/>`)
	jibri.until(`<iq id='2' type='get' to='internal.auth.localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>`, `var='http://jabber.org/protocol/muc'`)
	jibri.until(`<presence to='`+recorders+`/jibri-1'><x xmlns='http://jabber.org/protocol/muc'/></presence>`, `code='110'`)
	until("a recorder that has said nothing", func() bool {
		r := seen().Rooms.Recorders
		return len(r) == 1 && !r[0].Available && measured("jitsi_jicofo_jibri_instances") == 1
	})
	status := func(busy, health string) string {
		return `<presence to='` + recorders + `/jibri-1'><jibri-status xmlns='http://jitsi.org/protocol/jibri'><busy-status status='` + busy + `'/>` +
			`<health-status xmlns='http://jitsi.org/protocol/health' status='` + health + `'/></jibri-status></presence>`
	}
	for _, tt := range []struct {
		busy, health       string
		available, healthy bool
	}{{"idle", "healthy", true, true}, {"busy", "healthy", false, true}, {"idle", "unhealthy", false, false}, {"idle", "healthy", true, true}} {
		jibri.write(status(tt.busy, tt.health))
		until("a recorder that is "+tt.busy+" and "+tt.health, func() bool {
			r := seen().Rooms.Recorders
			return len(r) == 1 && r[0].JID.String() == recorders+"/jibri-1" && r[0].Available == tt.available && r[0].Healthy == tt.healthy &&
				(measured("jitsi_jicofo_jibri_instances_available") == 1) == tt.available
		})
	}

	// Jigasi, with the password in clear: allowed on the loopback, and with TLS.
	const gateways = "jigasibrewery@internal.auth.localhost"
	jigasi := login(t, s, "jigasi", "two", "jigasi", "PLAIN")
	jigasi.until(`<presence to='`+gateways+`/jigasi-1'><x xmlns='http://jabber.org/protocol/muc'/></presence>`, `code='110'`)
	stats := func(extra string) string {
		return `<presence to='` + gateways + `/jigasi-1'><stats xmlns='http://jitsi.org/protocol/colibri'><stat name='conferences' value='1'/>` +
			`<stat name='participants' value='3'/><stat name='region' value='ber'/><stat name='supports_sip' value='true'/>` + extra + `</stats></presence>`
	}
	jigasi.write(stats(""))
	until("a gateway", func() bool {
		g := seen().Rooms.Gateways
		return len(g) == 1 && g[0].Available && g[0].Region == "ber" && g[0].Participants == "3" && measured("plenum_shard_gateways_available") == 1
	})
	jigasi.write(stats(`<stat name='graceful_shutdown' value='true'/>`))
	until("a gateway that takes no more calls", func() bool {
		return measured("plenum_shard_gateways_available") == 0 && measured("plenum_shard_gateways") == 1
	})

	// The breweries of others are not theirs to be counted in, and guests get into none.
	jibri.until(`<presence to='`+gateways+`/lost'><x xmlns='http://jabber.org/protocol/muc'/></presence>`, `code='110'`)
	jibri.until(`<presence to='`+gateways+`/lost' type='unavailable'/>`, `type='unavailable'`)
	guest := enter(t, s, "room")
	defer guest.ws.Close()
	guest.send(`<presence to="` + recorders + `/guest" xmlns="jabber:client"><x xmlns="http://jabber.org/protocol/muc"/></presence>`)
	guest.until(`type='error'`)
	if n := len(seen().Rooms.Recorders); n != 1 {
		t.Errorf("%d recorders", n)
	}

	jigasi.write(`<presence to='` + gateways + `/jigasi-1' type='unavailable'/>`)
	jibri.Close() // a broken connection is gone at once, as there was no stream management
	until("nobody", func() bool {
		r := seen().Rooms
		return len(r.Recorders) == 0 && len(r.Gateways) == 0 && measured("jitsi_jicofo_jibri_instances") == 0
	})
}
