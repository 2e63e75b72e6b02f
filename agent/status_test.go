//go:build linux

package agent

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"plenum/agent/join"
)

// People see colours where they look at a terminal and have not said that they want none; columns are straight with
// and without, and pipes get plain lines.
func TestStatusPrint(t *testing.T) {
	r := Report{Hosts: []HostReport{{Host: "a", State: "up", Control: "10.86.0.1"}, {Host: "a-long-name", State: "not registered", Control: "10.86.0.2"}},
		Events: []join.Event{{Time: time.Now(), What: "enrol", Host: "thief", Reason: join.ReasonUsed, Alarm: true}}}
	text := func(live bool) string {
		var b bytes.Buffer
		check(t, (&Command{Out: &b, live: live}).print(r))
		return b.String()
	}
	t.Setenv("NO_COLOR", "")
	plain, live := text(false), text(true)
	if strings.Contains(plain, "\x1b") || !strings.Contains(plain, "ALARM enrol thief token-used") {
		t.Errorf("plain:\n%s", plain)
	}
	if bare := regexp.MustCompile(`\x1b\[\d*m`).ReplaceAllString(live, ""); bare == live || bare != plain {
		t.Errorf("without its colours it is not the plain one:\n%s", live)
	}
	t.Setenv("NO_COLOR", "1")
	if text(true) != plain {
		t.Error("NO_COLOR is not respected")
	}
	if terminal(&bytes.Buffer{}) {
		t.Error("a buffer is no terminal")
	}
}
