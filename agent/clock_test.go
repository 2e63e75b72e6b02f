//go:build linux

package agent

import (
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
)

// A host whose clock is wrong says so, with the offset, and says no more when it is right (E29).
func TestClock(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(join.Challenge{Time: time.Now()})
	}))
	defer s.Close()
	h, err := host.Open(t.TempDir())
	check(t, err)
	pin := sha256.Sum256(s.Certificate().RawSubjectPublicKeyInfo)
	w := &work{hand: hand{host: h}, view: view{answer: join.Answer{Pin: pin[:], Servers: []join.Server{{Join: s.Listener.Addr().String()}}}}}
	var off time.Duration
	l := &loop{work: w, metrics: newMetrics(), o: Options{Now: func() time.Time { return time.Now().Add(off) }}}
	for _, x := range []struct {
		off  time.Duration
		want string
	}{{0, ""}, {2 * time.Minute, "2m0s"}, {-2 * time.Minute, "-2m0s"}, {25 * time.Hour, "25h0m0s"}, {-25 * time.Hour, "-25h0m0s"}, {30 * time.Second, ""}} {
		off, l.clockNext = x.off, time.Time{}
		err := l.clock(t.Context())
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), " "+x.want+" off")) {
			t.Errorf("%s off: %v", x.off, err)
		}
		if again := l.clock(t.Context()); again != err {
			t.Errorf("%s off, at once again: %v", x.off, again)
		}
		if wrong := time.Until(l.now()).Abs(); wrong > time.Minute { // certificates are renewed by this
			t.Errorf("%s off: the cluster's time is taken to be %s off", x.off, wrong)
		}
	}
}
