//go:build linux

package agent

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
)

// A host that cannot keep what it was given does not ask for more at every look: a hundred of them with full disks would
// have Vault sign all day.
func TestRenewKeeps(t *testing.T) {
	var asked atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == join.PathRenew {
			asked.Add(1)
			_ = json.NewEncoder(w).Encode(join.Answer{Host: "b", NebulaCert: "new", RenewAfter: time.Now().Add(time.Hour), CertificateTo: time.Now().Add(3 * time.Hour)})
			return
		}
		_ = json.NewEncoder(w).Encode(join.Challenge{Time: time.Now()})
	}))
	defer s.Close()
	h, err := host.Open(t.TempDir())
	check(t, err)
	pin := sha256.Sum256(s.Certificate().RawSubjectPublicKeyInfo)
	w := &work{hand: hand{host: h, say: func(string, ...any) {}}, view: view{cfg: Config{Every: "5s"}, answer: join.Answer{Host: "b", NebulaCert: "old", Pin: pin[:],
		Servers: []join.Server{{Join: s.Listener.Addr().String()}}, RenewAfter: time.Now().Add(-time.Hour), CertificateTo: time.Now().Add(time.Hour)}}}
	l := &loop{work: w, metrics: newMetrics(), log: slog.New(slog.NewTextHandler(io.Discard, nil)), o: Options{Now: time.Now}}
	check(t, h.Mkdir(answerFile, 0o755)) // where the answer would go: as good as a full disk
	for range 3 {
		if err := l.renew(t.Context()); err == nil || !strings.Contains(err.Error(), "renewal: ") {
			t.Errorf("nothing was kept: %v", err)
		}
	}
	if asked.Load() != 1 || w.answer.NebulaCert != "old" {
		t.Errorf("asked %d times, and has %q", asked.Load(), w.answer.NebulaCert)
	}
	check(t, h.Remove(answerFile))
	l.notBefore = time.Time{}
	if err := l.renew(t.Context()); err != nil || w.answer.NebulaCert != "new" {
		t.Errorf("with space again: %q, %v", w.answer.NebulaCert, err)
	}
	if a, ok, err := loadAnswer(h); !ok || err != nil || a.NebulaCert != "new" {
		t.Errorf("on disk: %+v, %v", a, err)
	}
}

// An answer that the disk has spoilt is told with what to do, and is never taken for a host that has not joined.
func TestAnswerSpoilt(t *testing.T) {
	h, err := host.Open(t.TempDir())
	check(t, err)
	check(t, h.Mkdir(stateDir, 0o755))
	for _, text := range []string{"", "\x00\x00\x00", `{"cluster":"te`} {
		check(t, h.Write(answerFile, []byte(text), 0o600))
		if _, ok, err := loadAnswer(h); ok || err == nil || !strings.Contains(err.Error(), "join with a new token") {
			t.Errorf("%q: %t, %v", text, ok, err)
		}
	}
}
