package handover

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/signaling/rooms"
	"plenum/wire/jid"
)

func room(name string) jid.JID { return jid.MustParse(name + "@conference.localhost") }

// believes is what a shard believes of all rooms.
type believes struct {
	mu  sync.Mutex
	at  rooms.Shard
	err error
}

func (b *believes) Find(context.Context, jid.JID, bool) (rooms.Shard, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at, b.err
}

func (b *believes) set(at rooms.Shard, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at, b.err = at, err
}

// A shard that shows what reaches it.
func shard(t *testing.T, name string) (s rooms.Shard, b *believes) {
	t.Helper()
	b = new(believes)
	p := New(Config{Self: rooms.Shard{Name: name}, Owners: b})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/about/health" {
			return
		}
		c := Client{Remote: netip.MustParseAddr("192.0.2.7"), Region: "ber", Secure: true}
		if p.Take(w, r, room("standup"), c, r.URL.Query().Get("previd") != "") {
			return
		}
		body, _ := io.ReadAll(r.Body)
		h := r.Header
		fmt.Fprint(w, name, " ", r.Host, " ", h.Get("X-Forwarded-For"), " ", h.Get("X-Proxy-Region"), " ", h.Get("X-Forwarded-Proto"), " ", string(body))
	}))
	t.Cleanup(func() { p.Close(); server.Close() })
	return rooms.Shard{Name: name, Addr: server.Listener.Addr().String()}, b
}

func ask(t *testing.T, s rooms.Shard, path string) (int, string) {
	t.Helper()
	r, err := http.NewRequest("POST", "http://"+s.Addr+path, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "meet.example"
	r.Header.Set("X-Proxy-Region", "made up")
	r.Header.Set("X-Forwarded-For", "203.0.113.1")
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, strings.TrimSpace(string(text))
}

func TestTake(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	a, inA := shard(t, "a")
	b, inB := shard(t, "b")

	inA.set(b, nil)
	if code, text := ask(t, a, "/x"); code != 200 || text != "b meet.example 192.0.2.7 ber https body" {
		t.Errorf("taken to its owner: %d %q", code, text)
	}
	inB.set(a, nil) // each believes that it is the other's
	for _, s := range []rooms.Shard{a, b} {
		if code, text := ask(t, s, "/x"); code != 503 || !strings.Contains(text, "on its way") {
			t.Errorf("in circles: %d %q", code, text)
		}
	}
	inA.set(rooms.Shard{}, rooms.ErrIsolated)
	if code, _ := ask(t, a, "/x"); code != 503 {
		t.Errorf("nobody knows: %d", code)
	}
	if code, text := ask(t, a, "/x?previd=1"); code != 200 || !strings.HasPrefix(text, "a ") {
		t.Errorf("nobody knows, and is here already: %d %q", code, text)
	}
	// The owner is gone; in a while the room is ours.
	gone := httptest.NewServer(nil)
	gone.Close()
	inA.set(rooms.Shard{Name: "c", Addr: gone.Listener.Addr().String()}, nil)
	locked := time.AfterFunc(300*time.Millisecond, func() { inA.set(rooms.Shard{}, rooms.ErrLocked) })
	defer locked.Stop()
	freed := time.AfterFunc(800*time.Millisecond, func() { inA.set(rooms.Shard{Name: "a"}, nil) })
	defer freed.Stop()
	if code, text := ask(t, a, "/x"); code != 200 || !strings.HasPrefix(text, "a ") {
		t.Errorf("held until the room is free: %d %q", code, text)
	}
}

// TestHome: a room's home depends on names alone, and a shard more or less moves only its own share.
func TestHome(t *testing.T) {
	var list []Shard
	for i := range 5 {
		list = append(list, Shard{Name: fmt.Sprint("muc-", i+1), HTTP: fmt.Sprint("10.77.0.", i+1, ":8000")})
	}
	const n = 10_000
	homes := func(list []Shard) []string {
		s := NewShards("muc-1")
		s.Set(list)
		at := make([]string, n)
		for i := range at {
			h, ok := s.Home(room(fmt.Sprint("room", i)), false)
			if !ok {
				t.Fatal("no home")
			}
			at[i] = h.Name
		}
		return at
	}
	five := homes(list)
	share := map[string]int{}
	for _, h := range five {
		share[h]++
	}
	for name, k := range share {
		if k < n/5*9/10 || k > n/5*11/10 {
			t.Errorf("%s has %d of %d rooms", name, k, n)
		}
	}
	for range 20 {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i, h := range homes(list)[:500] {
			if h != five[i] {
				t.Fatalf("room %d moved because of the order", i)
			}
		}
	}
	left, moved := list[1:], 0
	for i, h := range homes(left) {
		if five[i] != h {
			if moved++; five[i] != list[0].Name {
				t.Fatalf("room %d moved between two that stayed", i)
			}
		}
	}
	if moved != share[list[0].Name] {
		t.Errorf("%d rooms moved, and %s had %d", moved, list[0].Name, share[list[0].Name])
	}
	s := NewShards("muc-1")
	if _, ok := s.Home(room("x"), false); ok {
		t.Error("a home without shards")
	}
	s.Set(list)
	for i := range 100 {
		if h, ok := s.Home(room(fmt.Sprint("room", i)), true); !ok || h.Name == "muc-1" {
			t.Errorf("elsewhere is %v", h)
		}
	}
}

func TestWanted(t *testing.T) {
	s := NewShards("muc-1")
	s.Set([]Shard{{Name: "muc-1", HTTP: "a"}, {Name: "Shard2", HTTP: "b"}})
	for _, c := range []struct{ room, pin, want string }{
		{"standup", "", ""},
		{"standup_shard2", "", "Shard2"},
		{"standup_muc-1", "", "muc-1"},
		{"standup_muc-1", "Shard2", "Shard2"},
		{"standup_muc-9", "", ""},
		{"standup", "muc-1", "muc-1"},
		{"standup", "gone", ""},
		{"shard2", "", ""},
	} {
		if h, ok := s.Wanted(room(c.room), c.pin); h.Name != c.want || ok != (c.want != "") {
			t.Errorf("%s, pinned to %q: %v %v, want %s", c.room, c.pin, h, ok, c.want)
		}
	}
}
