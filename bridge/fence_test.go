package bridge

import (
	"fmt"
	"strings"
	"testing"
)

// TestFence: who owned the room before is refused, and who has it now replaces what is there.
func TestFence(t *testing.T) {
	b := start(t, nil)
	request := func(token int, attrs, inside string) string {
		fence := ""
		if token >= 0 {
			fence = fmt.Sprintf("fencing-token='%d' ", token)
		}
		return modify + `meeting-id='m1' ` + fence + attrs + `>` + inside + `</conference-modify>`
	}
	create := func(token int) string {
		return request(token, `create='true' name='room@conference.localhost'`, newEndpoint("a"))
	}
	refused := func(what, request, text string) {
		t.Helper()
		if _, err := try(t, b, request); err == nil || !strings.Contains(err.String(), text) {
			t.Errorf("%s: %v, want %s", what, err, text)
		}
	}
	mustModify(t, b, create(5))
	first := b.control.conferences()[0]
	refused("an owner of before creates", create(4), "newer owner")
	refused("an owner of before changes", request(4, "", newEndpoint("b")), "newer owner")
	refused("an owner of before ends it", request(0, `expire='true'`, ""), "newer owner")
	refused("the same owner creates twice", create(5), "conference_already_exists")
	mustModify(t, b, request(5, "", newEndpoint("b")))
	mustModify(t, b, request(7, "", newEndpoint("c"))) // it locked the room again
	if n := len(first.endpoints); n != 3 {
		t.Errorf("%d endpoints", n)
	}
	refused("its former token", request(5, "", newEndpoint("d")), "newer owner")
	mustModify(t, b, create(9))
	all := b.control.conferences()
	if len(all) != 1 || all[0] == first || len(all[0].endpoints) != 1 {
		t.Errorf("%d conferences; the former owner's was not replaced", len(all))
	}
	mustModify(t, b, request(-1, "", newEndpoint("b"))) // a stock focus has no tokens
	refused("no number", strings.Replace(create(9), "'9'", "'x'", 1), "bad-request")
}
