package bridge

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// start runs a bridge on free ports until the test ends.
func start(t *testing.T, change func(*Config)) *Bridge {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	cfg := Config{
		Media: "127.0.0.1:0", HTTP: "127.0.0.1:0", Channel: "127.0.0.1:0", RelayID: "jvb1", Region: "ber", Cores: 1, ClearNames: true,
	}
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Run does not end")
		}
		goleak.VerifyNone(t, leaks)
	})
	return b
}

// eventually waits for what other goroutines bring about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond) // between two looks, not to order anything
	}
}

func TestConfig(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
	}{
		{"media without port", Config{Media: "127.0.0.1"}},
		{"media port", Config{Media: "127.0.0.1:99999"}},
		{"media host name", Config{Media: "localhost:10000"}},
		{"advertised name", Config{Advertise: []string{"bridge.example"}}},
		{"relay id", Config{RelayID: "a/b"}},
		{"shard without address", Config{Shards: []Shard{{Domain: "auth.x", User: "jvb", Brewery: "jvbbrewery@internal.auth.x"}}}},
		{"brewery with a nick", Config{Shards: []Shard{{Addr: "x:1", Domain: "auth.x", User: "jvb", Brewery: "jvbbrewery@internal.auth.x/jvb"}}}},
	} {
		if _, err := New(tc.cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestVersionIsNeverThatOfAJavaBridge(t *testing.T) {
	for _, v := range []string{"", "2.3.244", "plenum-1.0"} {
		cfg := Config{Version: v}
		if err := cfg.validate(); err != nil {
			t.Fatal(err)
		}
		if cfg.Version[:7] != "plenum-" {
			t.Errorf("%q became %q", v, cfg.Version)
		}
	}
}

func TestBusyPort(t *testing.T) {
	b := start(t, nil)
	for _, change := range []func(*Config){
		func(c *Config) { c.Media = b.MediaAddrs()[0].String() },
		func(c *Config) { c.HTTP = b.HTTPAddr().String() },
		func(c *Config) { c.Channel = b.ChannelAddr().String() },
	} {
		cfg := Config{Media: "127.0.0.1:0", HTTP: "127.0.0.1:0", Cores: 1}
		change(&cfg)
		if second, err := New(cfg); err == nil {
			second.Close()
			t.Errorf("bound twice: %+v", cfg)
		}
	}
}

func TestLifecycle(t *testing.T) {
	var s lifecycle
	s.init(false)
	ended := func() bool {
		select {
		case <-s.ending:
			return true
		default:
			return false
		}
	}
	if s.count(0); s.closing() || ended() {
		t.Fatal("idle bridge ends")
	}
	s.request(true)
	if s.count(2); !s.closing() || ended() {
		t.Fatal("graceful: new conferences are refused, old ones go on")
	}
	if s.count(0); !ended() {
		t.Fatal("does not end when empty")
	}
	s.request(false)
	s.count(0)
}

func TestShutdownEndsRun(t *testing.T) {
	b, err := New(Config{Media: "127.0.0.1:0", HTTP: "off", Cores: 1, ShutdownDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Run(context.Background()) }()
	b.state.request(true)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run goes on")
	}
}

func TestDrainWaits(t *testing.T) {
	b := start(t, nil)
	mustModify(t, b, `<conference-modify xmlns='jitsi:colibri2' meeting-id='m1' create='true'>`+newEndpoint("aaaa1111")+`</conference-modify>`)
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	if err := b.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drained with an endpoint: %v", err)
	}
	if b.state.closing() {
		t.Error("a cancelled drain goes on")
	}
	mustModify(t, b, `<conference-modify xmlns='jitsi:colibri2' meeting-id='m1'><endpoint id='aaaa1111' expire='true'/></conference-modify>`)
	if err := b.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}
