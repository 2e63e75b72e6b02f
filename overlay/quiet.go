package overlay

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// quiet passes on what libraries log, at most once a minute for each peer, or for each message that names no
// peer, and at most 60 lines a minute in all: a peer whose certificate has ended knocks ten times a second.
type quiet struct {
	slog.Handler
	about string // the peer that With named
	state *quietState
}

type quietState struct {
	mu      sync.Mutex
	now     func() time.Time
	window  time.Time
	said    map[string]int // lines about it in this window
	lines   int
	dropped int
}

const (
	quietWindow = time.Minute
	quietLines  = 60
	quietTopics = 4096
)

// Quiet returns a logger for a library's use.
func Quiet(log *slog.Logger) *slog.Logger {
	return slog.New(quiet{Handler: log.Handler(), state: &quietState{now: time.Now, said: map[string]int{}}})
}

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	topic := q.about
	r.Attrs(func(a slog.Attr) bool {
		topic = aboutPeer(topic, a)
		return true
	})
	if topic == "" {
		topic = r.Message
	}
	dropped, ok := q.state.allow(topic)
	if !ok {
		return nil
	}
	if dropped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("not_shown", dropped))
	}
	return q.Handler.Handle(ctx, r)
}

func (s *quietState) allow(topic string) (dropped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); now.Sub(s.window) >= quietWindow {
		s.window, s.lines = now, 0
		dropped, s.dropped = s.dropped, 0
		clear(s.said)
	}
	if s.said[topic] > 0 || s.lines >= quietLines || len(s.said) >= quietTopics {
		s.dropped++
		return 0, false
	}
	s.said[topic]++
	s.lines++
	return dropped, true
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	about := q.about
	for _, a := range attrs {
		about = aboutPeer(about, a)
	}
	return quiet{q.Handler.WithAttrs(attrs), about, q.state}
}

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler {
	return quiet{q.Handler.WithGroup(name), q.about, q.state}
}

// aboutPeer returns the peer that a names, or topic. An overlay's address is better than one of the underlay.
func aboutPeer(topic string, a slog.Attr) string {
	switch a.Key {
	case "vpnAddrs", "vpnIp", "vpnAddr":
		return "peer " + strings.Trim(fmt.Sprint(a.Value.Any()), "[]")
	case "from", "udpAddr", "udpAddrs":
		if topic == "" {
			text := fmt.Sprint(a.Value.Any())
			if at, err := netip.ParseAddrPort(text); err == nil {
				text = at.Addr().Unmap().String()
			}
			return "from " + text
		}
	}
	return topic
}
