package bridge

import (
	"bufio"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/xmpp"
)

// TestRecordedJicofo replays a recorded conference of a stock Jicofo and compares what this bridge answers
// with what the Java bridge answered then. What is made up anew each time is left out of the comparison, and
// so is the WebSocket, which the recorded bridge had switched off.
func TestRecordedJicofo(t *testing.T) {
	f, err := os.Open("testdata/jicofo.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := start(t, nil)
	var about, request string
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		switch {
		case line == "":
		case strings.HasPrefix(line, "#"):
			about = strings.TrimPrefix(line, "# ")
		case request == "":
			request = line
		default:
			recorded, err := xmpp.Parse([]byte(line), xmpp.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			answer := mustModify(t, b, request).Element()
			if diff := cmp.Diff(likeness(recorded), likeness(answer)); diff != "" {
				t.Errorf("%s: answered otherwise: - the Java bridge, + ours\n%s", about, diff)
			}
			request = ""
			n++
		}
	}
	if n != 14 || request != "" {
		t.Errorf("%d exchanges replayed, and then %q", n, request)
	}
	// It ends after its last answer.
	eventually(t, "the conference's end", func() bool { return len(b.control.conferences()) == 0 })
}

// likeness is an element as lines, without what differs from one run to the next.
func likeness(e *xmpp.Element) (lines []string) {
	var walk func(e *xmpp.Element, indent string)
	walk = func(e *xmpp.Element, indent string) {
		var attrs []string
		for _, a := range e.Attrs {
			switch a.Name {
			case "ufrag", "pwd", "ssrc", "id", "ip", "port", "priority", "foundation":
				if a.Name != "id" || e.Name == "candidate" {
					a.Value = "…"
				}
			}
			attrs = append(attrs, a.Name+"="+a.Value)
		}
		slices.Sort(attrs)
		lines = append(lines, indent+e.Space+" "+e.Name+" "+strings.Join(attrs, " "))
		for c := range e.Children {
			if c.Name != "web-socket" {
				walk(c, indent+"  ")
			}
		}
	}
	walk(e, "")
	return lines
}
