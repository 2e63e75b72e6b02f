package edge

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/consul/api"

	"plenum/overlay/netlab/stack"
)

// TestConsul follows shards, bridges and bans in a real Consul. What nobody could serve is left out, and a Consul that
// is gone changes nothing.
func TestConsul(t *testing.T) {
	leaks(t)
	server := stack.Consul(t)
	client, err := api.NewClient(&api.Config{Address: server.Address, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	register := func(id, service, address string, port int, meta map[string]string) {
		t.Helper()
		if err := client.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Address: address, Port: port, Meta: meta}); err != nil {
			t.Fatal(err)
		}
	}
	views := make(chan View, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	catalogue := &Consul{Client: client, Log: slog.New(slog.DiscardHandler)}
	go func() {
		ended <- catalogue.Watch(ctx, func(v View) { views <- v })
	}()
	var last View
	wait := func(want View) {
		t.Helper()
		sort := cmpopts.SortSlices(func(a, b Shard) bool { return a.Name < b.Name })
		same := func() bool {
			return cmp.Equal(last, want, sort, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
		}
		for limit := time.After(20 * time.Second); !same(); {
			select {
			case last = <-views:
			case <-limit:
				t.Fatalf("the last view is %+v, want %+v", last, want)
			}
		}
	}
	register("a", serviceShard, "10.77.0.2", 20001, map[string]string{"shard": "muc-1", "region": "muc", "metrics_port": "20002"})
	register("b", serviceBridge, "10.77.0.3", 20003, map[string]string{"relay_id": "h3", "ws_port": "20004"})
	register("c", serviceShard, "evil", 1, map[string]string{"shard": "x"})
	register("d", serviceShard, "10.77.0.2", 5, map[string]string{"shard": "x; del server"})
	want := View{Shards: []Shard{{Name: "muc-1", Region: "muc", Addr: "10.77.0.2:20001", Load: "10.77.0.2:20002"}},
		Bridges: []Bridge{{"h3", "10.77.0.3:20004"}}}
	wait(want)

	register("e", serviceShard, "fd77::4", 20005, map[string]string{"shard": "ber-1", "region": "ber"})
	want.Shards = append(want.Shards, Shard{Name: "ber-1", Region: "ber", Addr: "[fd77::4]:20005"})
	wait(want)

	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	if _, err := client.KV().Put(&api.KVPair{Key: bansPrefix + "192.0.2.0-24", Value: fmt.Appendf(nil, `{"until":%q}`, until.Format(time.RFC3339))}, nil); err != nil {
		t.Fatal(err)
	}
	want.Bans = []Ban{{netip.MustParsePrefix("192.0.2.0/24"), until}}
	wait(want)

	if err := client.Agent().ServiceDeregister("a"); err != nil {
		t.Fatal(err)
	}
	want.Shards = want.Shards[1:]
	wait(want)

	server.Kill()
	killed := time.Now()
	if age := catalogue.Age(killed); age > 2*patience {
		t.Errorf("a catalogue that answers is %v old", age)
	}
	select {
	case v := <-views:
		t.Errorf("Consul is gone, and there is a view: %+v", v)
	case <-time.After(1500 * time.Millisecond):
	}
	if now := time.Now(); catalogue.Age(now) < now.Sub(killed) {
		t.Errorf("Consul is gone for %v, and the age is %v", now.Sub(killed), catalogue.Age(now))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTwice: of what the catalogue lists twice, for it has not forgotten what was replaced, the well one counts.
func TestTwice(t *testing.T) {
	entry := func(address, status string) *api.ServiceEntry {
		return &api.ServiceEntry{Service: &api.AgentService{Address: address, Port: 8000, Meta: map[string]string{"shard": "muc-1", "relay_id": "h1", "ws_port": "9000"}},
			Checks: api.HealthChecks{{Status: status}}}
	}
	old, well := entry("10.77.0.2", api.HealthCritical), entry("10.77.0.3", api.HealthPassing)
	for _, list := range [][]*api.ServiceEntry{{old, well}, {well, old}} {
		if got := shardsOf(list); len(got) != 1 || got[0].Addr != "10.77.0.3:8000" || got[0].Ill {
			t.Errorf("shards: %+v", got)
		}
		if got := bridgesOf(list); len(got) != 1 || got[0].Addr != "10.77.0.3:9000" {
			t.Errorf("bridges: %+v", got)
		}
	}
	if got := bridgesOf([]*api.ServiceEntry{old}); len(got) != 1 {
		t.Errorf("a bridge that is ill: %+v", got)
	}
}
