package jid

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want, local, domain, resource string }{
		{"meet.example", "meet.example", "", "meet.example", ""},
		{"Meet.Example.", "meet.example", "", "meet.example", ""},
		{"standup@muc.meet.example", "standup@muc.meet.example", "standup", "muc.meet.example", ""},
		{"Standup@MUC.meet.example/Ann", "standup@muc.meet.example/Ann", "standup", "muc.meet.example", "Ann"},
		{"[acme]standup@muc.meet.example/a1b2c3d4", "[acme]standup@muc.meet.example/a1b2c3d4", "[acme]standup", "muc.meet.example", "a1b2c3d4"},
		{"%d0%bf@muc.x", "%d0%bf@muc.x", "%d0%bf", "muc.x", ""},
		{"ПЛАН@muc.x", "план@muc.x", "план", "muc.x", ""},
		{"a@b/c@d/e", "a@b/c@d/e", "a", "b", "c@d/e"},
		{"b/c@d", "b/c@d", "", "b", "c@d"},
		{"a@[::1]/r", "a@[::1]/r", "a", "[::1]", "r"},
		{"a@Bücher.example", "a@bücher.example", "a", "bücher.example", ""},
		{"a@b/Ann Lee", "a@b/Ann Lee", "a", "b", "Ann Lee"},
	} {
		j, err := Parse(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if j.String() != c.want || j.Local() != c.local || j.Domain() != c.domain || j.Resource() != c.resource {
			t.Errorf("%q: %q = %q, %q, %q", c.in, j, j.Local(), j.Domain(), j.Resource())
		}
		built, err := New(c.local, c.domain, c.resource)
		if err != nil || built != j {
			t.Errorf("%q: New makes %q, %v", c.in, built, err)
		}
		if j.IsBare() != (c.resource == "") || j.Bare().IsZero() || !j.Bare().IsBare() {
			t.Errorf("%q: bare", c.in)
		}
		if again, err := j.Bare().WithResource(c.resource); err != nil || again != j {
			t.Errorf("%q: WithResource makes %q, %v", c.in, again, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	long := strings.Repeat("a", maxPart+1)
	for _, in := range []string{
		"", "@", "/", "a@", "@b", "a@b/", "a b@c", "a@b c", "a\x00@b", "a@b/\x01", "a'b@c", `a"b@c`, "a&b@c", "a<b@c", "a:b@c", "a@b@c",
		"a@b..c", "a@.b", "a@[::1", "a@[]", "a@[g]", "a@b\xff", "\xff@b", "a@b/\xff", long, long + "@b", "a@" + long, "a@b/" + long, strings.Repeat("a", 1<<16),
	} {
		if j, err := Parse(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %q, %v", in, j, err)
		}
	}
	if _, err := (JID{}).WithResource("a"); !errors.Is(err, ErrInvalid) {
		t.Errorf("resource of nothing: %v", err)
	}
	if !(JID{}).IsZero() || (JID{}).IsBare() || (JID{}).String() != "" || (JID{}).Domain() != "" || (JID{}).Resource() != "" {
		t.Error("the zero value is not nothing")
	}
}

func TestCanonicalCostsNothing(t *testing.T) {
	in := "standup@conference.meet.example/a1b2c3d4"
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(in) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	j := MustParse(in)
	if n := testing.AllocsPerRun(100, func() { _ = j.Bare().String() + ""; _ = j.Domain(); _ = j.Resource() }); n != 0 {
		t.Errorf("parts: %v allocations", n)
	}
}

func TestText(t *testing.T) {
	type doc struct {
		A, None JID
		By      map[JID]int
	}
	want := doc{A: MustParse("Room@muc.x/a"), By: map[JID]int{MustParse("b@x"): 1}}
	text, err := json.Marshal(want)
	if err != nil || string(text) != `{"A":"room@muc.x/a","None":"","By":{"b@x":1}}` {
		t.Fatalf("%s, %v", text, err)
	}
	var got doc
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := json.Unmarshal([]byte(`{"A":"@"}`), &got); !errors.Is(err, ErrInvalid) || got.A != want.A {
		t.Errorf("%v, left %q", err, got.A)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a@b/c", "meet.example", "[acme]standup@muc.x/a1b2c3d4", "ПЛАН@muc.x", "a@[::1]", "ß@ß/ß", "a@b/ ", "Ⅷ@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		j, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(j.String())
		if err != nil || again != j {
			t.Fatalf("%q: %q becomes %q, %v", s, j, again, err)
		}
		built, err := New(j.Local(), j.Domain(), j.Resource())
		if err != nil || built != j {
			t.Fatalf("%q: New makes %q, %v", s, built, err)
		}
	})
}
