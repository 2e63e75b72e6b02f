package xmpp

import (
	"errors"
	"testing"
)

func TestReplies(t *testing.T) {
	req := IQ("get", "i1", "a@b/c", "d", New(NSPing, "ping"))
	for _, c := range []struct {
		got  *Element
		want string
	}{
		{req, `<iq xmlns='jabber:client' type='get' id='i1' from='a@b/c' to='d'><ping xmlns='urn:xmpp:ping'/></iq>`},
		{Result(req), `<iq xmlns='jabber:client' type='result' id='i1' from='d' to='a@b/c'/>`},
		{ErrorReply(req, StanzaError{Condition: ItemNotFound}),
			`<iq xmlns='jabber:client' type='error' id='i1' from='d' to='a@b/c'><error type='cancel'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>`},
		{ErrorReply(Presence("", "", "x", "y"), StanzaError{Type: "auth", Condition: NotAuthorized, Text: "a & b", App: []*Element{New("u", "v")}}),
			`<presence xmlns='jabber:client' type='error' from='y' to='x'><error type='auth'><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>a &amp; b</text><v xmlns='u'/></error></presence>`},
	} {
		if c.got.String() != c.want {
			t.Errorf("%s, want\n%s", c.got, c.want)
		}
	}
	if !NewFrame(req).Counted || NewFrame(New(NSSM, "r")).Counted || NewFrame(New(NSSM, "iq")).Counted {
		t.Error("Counted")
	}
	if !req.IsRequest() || Result(req).IsRequest() {
		t.Error("IsRequest")
	}
}

func TestErrorRoundTrip(t *testing.T) {
	for _, e := range []StanzaError{
		{Type: "cancel", Condition: ItemNotFound}, {Type: "wait", Condition: ResourceConstraint, Text: "Source limit"},
		{Type: "auth", Condition: NotAuthorized, App: []*Element{New("http://jitsi.org/jitmeet", "lobbyroom").AddText("x")}},
	} {
		reply := ErrorReply(IQ("set", "1", "a", "b"), e)
		got, ok := ParseError(reply)
		if !ok || got.Type != e.Type || got.Condition != e.Condition || got.Text != e.Text || len(got.App) != len(e.App) {
			t.Errorf("%+v, want %+v", got, e)
		}
		var err error = got
		if target := (StanzaError{}); !errors.As(err, &target) || target.Condition != e.Condition {
			t.Errorf("%v is not a stanza error", err)
		}
	}
	if _, ok := ParseError(IQ("result", "1", "", "")); ok {
		t.Error("a result has an error")
	}
	if e, ok := ParseError(IQ("error", "1", "", "")); !ok || e.Condition != UndefinedCondition {
		t.Error("an error without condition")
	}
}

func TestControlCharactersAreReplaced(t *testing.T) {
	e := New("", "a", "b", "x\x00y").AddText("1\x1b2\t3")
	if got, want := e.String(), "<a xmlns='jabber:client' b='x\uFFFDy'>1\uFFFD2&#9;3</a>"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
