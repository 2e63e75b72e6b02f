package signaling

import (
	"strings"
	"testing"

	"plenum/wire/jid"
)

// TestSpellings: however a link writes a room, it is one; and no two rooms are one.
func TestSpellings(t *testing.T) {
	n := newNames("meet.example")
	for want, all := range map[string][]string{
		"f%c3%bc%c3%9f@conference.meet.example":               {"Füß", "FÜß", "F%C3%BC%C3%9F", "f%c3%bc%c3%9f"},
		"f%c3%bc%c3%9f%25c3@conference.meet.example":          {"F%C3%BC%C3%9F%25c3", "f%c3%bc%c3%9f%25C3"},
		"standup@conference.meet.example":                     {"standup", "StandUp", "%53tandup"},
		"standup_muc-1@conference.meet.example":               {"Standup_MUC-1"},
		strings.Repeat("a", 200) + "@conference.meet.example": {strings.Repeat("A", 200)},
	} {
		for _, raw := range all {
			if got := n.room(raw, ""); got != jid.MustParse(want) {
				t.Errorf("%s is %s, want %s", raw, got, want)
			}
		}
	}
	if got := n.room("Standup", "School"); got != jid.MustParse("standup@conference.school.meet.example") {
		t.Errorf("tenant: %s", got)
	}
	for _, raw := range []string{"", strings.Repeat("a", 2000), "it's", "\xff"} {
		if got := n.room(raw, ""); !got.IsZero() {
			t.Errorf("%.20q is %s", raw, got)
		}
	}
	for link, want := range map[string]string{"Standup": "standup@conference.meet.example", "School/Standup": "standup@conference.school.meet.example"} {
		if got, err := Address("meet.example", link); err != nil || got != jid.MustParse(want) {
			t.Errorf("%s: %s, %v", link, got, err)
		}
	}
	if _, err := Address("meet.example", ""); err == nil {
		t.Error("no room is one")
	}
}
