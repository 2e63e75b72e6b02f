package meet

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/xmpp"
)

func parse(t testing.TB, s string) *xmpp.Element {
	t.Helper()
	e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return e
}

// both checks that xml reads as want and that what want writes reads as want again.
func both[T any](t *testing.T, xml string, want T, read func(*xmpp.Element) (T, error), write func(T) *xmpp.Element) {
	t.Helper()
	got, err := read(parse(t, xml))
	if err != nil {
		t.Errorf("%s: %v", xml, err)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: -want +got\n%s", xml, diff)
	}
	again, err := read(parse(t, write(want).String()))
	if diff := cmp.Diff(want, again); err != nil || diff != "" {
		t.Errorf("%s: %v, -want +got\n%s", write(want), err, diff)
	}
}

func TestElements(t *testing.T) {
	for xml, want := range map[string]Conference{
		`<conference machine-uid="8cab9fea" room="golden@conference.meet.local" xmlns="http://jitsi.org/protocol/focus"><property name="rtcstatsEnabled" value="false"/><property name="visitors-version" value="1"/></conference>`: {
			Room: "golden@conference.meet.local", MachineUID: "8cab9fea", Properties: []Property{{"rtcstatsEnabled", "false"}, {"visitors-version", "1"}}},
		`<conference xmlns='http://jitsi.org/protocol/focus' room='golden@conference.meet.local' focusjid='focus@auth.meet.local' ready='true'><property value='false' name='authentication'/></conference>`: {
			Room: "golden@conference.meet.local", FocusJID: "focus@auth.meet.local", Ready: true, Properties: []Property{{"authentication", "false"}}},
		`<conference xmlns='http://jitsi.org/protocol/focus' room='r@c' session-id='s' focusjid='f@a' ready='false' vnode='v1' identity='i'/>`: {
			Room: "r@c", SessionID: "s", FocusJID: "f@a", VNode: "v1", Identity: "i"},
	} {
		both(t, xml, want, ParseConference, Conference.Element)
	}
	both(t, `<startmuted xmlns='http://jitsi.org/jitmeet/start-muted' audio='true' video='false'/>`, StartMuted{Audio: true}, ParseStartMuted, StartMuted.Element)
	both(t, `<mute jid="golden@conference.meet.local/bbbb2222" xmlns="http://jitsi.org/jitmeet/audio">true</mute>`,
		Mute{Kind: "audio", JID: "golden@conference.meet.local/bbbb2222", On: true}, ParseMute, Mute.Element)
	both(t, `<mute actor='golden@conference.meet.local/aaaa1111' xmlns='http://jitsi.org/jitmeet/video'>false</mute>`,
		Mute{Kind: "video", Actor: "golden@conference.meet.local/aaaa1111"}, ParseMute, Mute.Element)
	both(t, `<SourceInfo>{}</SourceInfo>`, SourceInfo{}, ParseSourceInfo, SourceInfo.Element)
	both(t, `<SourceInfo>{"bbbb2222-a0":{"muted":false},"bbbb2222-v1":{"muted":true,"videoType":"desktop"}}</SourceInfo>`,
		SourceInfo{"bbbb2222-a0": {}, "bbbb2222-v1": {Muted: true, VideoType: "desktop"}}, ParseSourceInfo, SourceInfo.Element)
	both(t, `<conference-properties xmlns='http://jitsi.org/protocol/focus'><property value='true' key='support-terminate-restart'/><property key='bridge-count' value='1'/></conference-properties>`,
		[]Property{{"support-terminate-restart", "true"}, {"bridge-count", "1"}}, ParseConferenceProperties, ConferenceProperties)
	both(t, `<json-message xmlns='http://jitsi.org/jitmeet' room='golden@conference.meet.local'>{"type":"room_metadata","metadata":{"startMuted":{"audio":true}}}</json-message>`,
		JSONMessage{"golden@conference.meet.local", json.RawMessage(`{"type":"room_metadata","metadata":{"startMuted":{"audio":true}}}`)}, ParseJSONMessage, JSONMessage.Element)
	both(t, `<room_metadata xmlns='http://jitsi.org/jitmeet' room='r@c'>{"key":"startMuted","data":{"audio":true},"type":"room_metadata"}</room_metadata>`,
		MetadataChange{"r@c", "startMuted", json.RawMessage(`{"audio":true}`)}, ParseMetadataChange, MetadataChange.Element)
	both(t, `<query xmlns='http://jabber.org/protocol/disco#info'><identity category='conference' type='text' name='standup'/><feature var='muc_passwordprotected'/><feature var='muc_membersonly'/>`+
		`<x xmlns='jabber:x:data' type='result'><field var='FORM_TYPE' type='hidden'><value>http://jabber.org/protocol/muc#roominfo</value></field><field var='muc#roominfo_meetingId'><value>0000-4000</value></field>`+
		`<field var='muc#roominfo_created_timestamp'><value>1771500000000</value></field><field var='muc#roominfo_lobbyroom'><value>standup@lobby.meet.example</value></field><field var='muc#roominfo_occupants'><value>2</value></field></x></query>`,
		RoomInfo{"standup", "0000-4000", time.UnixMilli(1771500000000), "standup@lobby.meet.example", true, true, 2}, ParseRoomInfo, RoomInfo.Element)
}

func TestWritten(t *testing.T) {
	for want, e := range map[string]*xmpp.Element{
		`<permissions xmlns='http://jitsi.org/jitmeet'><p xmlns='http://jitsi.org/jitmeet' name='recording' val='true'/></permissions>`:                 Permissions("recording"),
		`<versions xmlns='http://jitsi.org/jitmeet'><component xmlns='http://jitsi.org/jitmeet' name='focus'>1.1</component></versions>`:                Versions("1.1"),
		`<bridgeNotAvailable xmlns='http://jitsi.org/protocol/focus'/>`:                                                                                 BridgeNotAvailable(),
		`<json-message xmlns='http://jitsi.org/jitmeet' room='r@c'>{&quot;type&quot;:&quot;room_metadata&quot;,&quot;metadata&quot;:{}}</json-message>`: RoomMetadata(nil).Message("r@c").Element(),
		`<SourceInfo xmlns='jabber:client'>{}</SourceInfo>`:                                                                                             SourceInfo(nil).Element(),
	} {
		if e.String() != want {
			t.Errorf("%s, want %s", e, want)
		}
	}
	if s := (RoomInfo{Name: "a"}).Element().String(); strings.Contains(s, "isbreakout") || !strings.Contains(s, "muc_open") {
		t.Errorf("main room: %s", s)
	}
}

func TestMalformed(t *testing.T) {
	for name, read := range map[string]func(*xmpp.Element) error{
		"conference": func(e *xmpp.Element) error { _, err := ParseConference(e); return err },
		"startmuted": func(e *xmpp.Element) error { _, err := ParseStartMuted(e); return err },
		"mute":       func(e *xmpp.Element) error { _, err := ParseMute(e); return err },
		"SourceInfo": func(e *xmpp.Element) error { _, err := ParseSourceInfo(e); return err },
		"properties": func(e *xmpp.Element) error { _, err := ParseConferenceProperties(e); return err },
		"json":       func(e *xmpp.Element) error { _, err := ParseJSONMessage(e); return err },
		"change":     func(e *xmpp.Element) error { _, err := ParseMetadataChange(e); return err },
		"roominfo":   func(e *xmpp.Element) error { _, err := ParseRoomInfo(e); return err },
	} {
		for _, s := range []string{
			`<x/>`, `<conference xmlns='http://jitsi.org/protocol/focus'/>`, `<mute xmlns='http://jitsi.org/jitmeet/audio'>maybe</mute>`, `<mute xmlns='http://jitsi.org/jitmeet/smell'>true</mute>`,
			`<mute>true</mute>`, `<SourceInfo>[]</SourceInfo>`, `<SourceInfo>{"a":1}</SourceInfo>`, `<SourceInfo>` + strings.Repeat(" ", maxJSONBytes+1) + `</SourceInfo>`,
			`<json-message xmlns='http://jitsi.org/jitmeet'>{</json-message>`, `<room_metadata xmlns='http://jitsi.org/jitmeet'>{"data":1}</room_metadata>`, `<room_metadata xmlns='http://jitsi.org/jitmeet'>{"key":"a"}</room_metadata>`,
			`<query xmlns='http://jabber.org/protocol/disco#info'><x xmlns='jabber:x:data'><field var='muc#roominfo_created_timestamp'><value>now</value></field></x></query>`,
		} {
			if err := read(parse(t, s)); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s of %.100s: %v", name, s, err)
			}
		}
		if err := read(nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s of nothing: %v", name, err)
		}
	}
}

func TestConferenceJSON(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Conference
		out  string // when it is written differently
	}{
		{`{"room":"golden@conference.meet.local","machineUid":"abcdef","properties":{"rtcstatsEnabled":false,"visitors-version":1,"x":null}}`,
			Conference{Room: "golden@conference.meet.local", MachineUID: "abcdef", Properties: []Property{{"rtcstatsEnabled", "false"}, {"visitors-version", "1"}, {"x", ""}}},
			`{"room":"golden@conference.meet.local","machineUid":"abcdef","properties":{"rtcstatsEnabled":"false","visitors-version":"1","x":""}}`},
		{`{"room":"golden@conference.meet.local","ready":true,"focusJid":"focus@auth.meet.local","properties":{"visitors-supported":"false","authentication":"false"}}`,
			Conference{Room: "golden@conference.meet.local", Ready: true, FocusJID: "focus@auth.meet.local", Properties: []Property{{"visitors-supported", "false"}, {"authentication", "false"}}}, ``},
		{`{"room":"r@c"}`, Conference{Room: "r@c"}, `{"room":"r@c","properties":{}}`},
		{`{"room":"r@c","ready":false,"focusJid":"f@a","sessionId":"s","identity":"i","vnode":"v1","properties":{}}`,
			Conference{Room: "r@c", FocusJID: "f@a", SessionID: "s", Identity: "i", VNode: "v1"}, ``},
	} {
		var got Conference
		if err := json.Unmarshal([]byte(c.in), &got); err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.in, diff)
		}
		out := c.out
		if out == "" {
			out = c.in
		}
		if b, err := json.Marshal(got); err != nil || string(b) != out {
			t.Errorf("%s, %v, want\n%s", b, err, out)
		}
	}
	for _, s := range []string{`{}`, `[]`, `{"room":1}`, `{"room":"r@c","properties":[]}`, `{"room":"r@c","properties":{"a":{}}}`, `{"room":"r@c","properties":{"a":[]}}`} {
		var c Conference
		if err := json.Unmarshal([]byte(s), &c); err == nil {
			t.Errorf("%s: %+v", s, c)
		}
	}
}

func TestMetadata(t *testing.T) {
	want := RoomMetadata{"startMuted": json.RawMessage(`{"audio":true,"video":false}`), "title": json.RawMessage(`"a\u003cb\u003e\u0026'c"`)}
	e := parse(t, want.Message("r@c").Element().String())
	m, err := ParseJSONMessage(e)
	if err != nil || m.Type() != "room_metadata" || m.Room != "r@c" {
		t.Fatalf("%+v, %v", m, err)
	}
	if text := m.Element().Text(); strings.ContainsAny(text, "<>&") {
		t.Errorf("a client that undoes HTML's escapes may read something else: %s", text)
	}
	if got, err := ParseRoomMetadata(m); err != nil || !cmp.Equal(got, want) {
		t.Errorf("%s, %v", got, err)
	}
	for _, s := range []string{`{}`, `[]`, `{"type":"room_metadata"}`, `{"type":"other","metadata":{}}`} {
		if got, err := ParseRoomMetadata(JSONMessage{Data: json.RawMessage(s)}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
}

func TestRoom(t *testing.T) {
	for _, c := range []struct{ raw, tenant, want string }{
		{"standup", "", "standup"}, {"StandUp", "", "standup"}, {"Team Stand-Up", "", "team%20stand-up"}, {"team%20stand-up", "", "team%20stand-up"},
		{"Team%20Stand-Up", "Acme", "team%20stand-up"}, {"план", "", "%d0%bf%d0%bb%d0%b0%d0%bd"}, {"%D0%9F%D0%BB%D0%B0%D0%BD", "", "%d0%bf%d0%bb%d0%b0%d0%bd"},
		{"ﬁnal", "", "final"}, {"100%", "", "100%25"}, {"100%25", "", "100%25"}, {"[acme]x", "", "%5bacme%5dx"}, {"a/b", "", "a%2fb"}, {"%41", "", "a"}, {"a@b", "", "a%40b"},
		{"ΟΔΟΣ", "", "%ce%bf%ce%b4%ce%bf%cf%82"}, {"a(b)!", "", "a(b)!"},
	} {
		domain := "conference.meet.local"
		if c.tenant != "" {
			domain = "conference.acme.meet.local"
		}
		got, err := Room(c.raw, c.tenant, "meet.local")
		if err != nil || got.Local() != c.want || got.Domain() != domain {
			t.Errorf("%q, %q: %v, %v, want %s@%s", c.raw, c.tenant, got, err, c.want, domain)
		}
	}
	for _, raw := range []string{"", "it's", "it%27s", "\xff", strings.Repeat("a", maxRoomBytes+1), strings.Repeat("%", maxRoomBytes)} {
		if got, err := Room(raw, "", "meet.local"); !errors.Is(err, ErrRoomName) {
			t.Errorf("%.20q: %.20v, %v", raw, got, err)
		}
	}
	if got, err := Room("a", "it's", "meet.local"); !errors.Is(err, ErrRoomName) {
		t.Errorf("tenant: %v, %v", got, err)
	}
	if !ReservedName("static") || !ReservedName("XMPP-WebSocket") || ReservedName("standup") {
		t.Error("ReservedName")
	}
}

func TestIsEndpoint(t *testing.T) {
	for s, want := range map[string]bool{
		"a1b2c3d4": true, "focus": true, "A_b": true, "0": true, "": false, "_a": false, "a-b": false, "a b": false, "ä": false, "a\n": false, "@": false, "[": false, "`": false, "a{": false,
		strings.Repeat("a", 64): true, strings.Repeat("a", 65): false,
	} {
		if IsEndpoint(s) != want {
			t.Errorf("%q is not %v", s, want)
		}
	}
}

// FuzzRoom: what one shard calls a room is what another makes of that name.
func FuzzRoom(f *testing.F) {
	for _, s := range []string{"standup", "Team Stand-Up", "%D0%9F", "100%", "İ", "ΟΔΟΣ", "a'b", "ﬁ", "%2525"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		room, err := Room(s, "Acme", "meet.local")
		if err != nil {
			return
		}
		if again, err := Room(room.Local(), "acme", "meet.local"); err != nil || again != room {
			t.Fatalf("%q: %v, and again %v, %v", s, room, again, err)
		}
	})
}

func FuzzConference(f *testing.F) {
	f.Add([]byte(`{"room":"r@c","ready":true,"focusJid":"f","properties":{"a":1,"b":"c"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c, again Conference
		if json.Unmarshal(b, &c) != nil {
			return
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if c.FocusJID == "" {
			c.Ready = false
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzStanzaPieces(f *testing.F) {
	f.Add(`<SourceInfo>{"a-v0":{"muted":true}}</SourceInfo>`)
	f.Add(`<mute xmlns='http://jitsi.org/jitmeet/audio'>true</mute>`)
	f.Add(`<room_metadata xmlns='http://jitsi.org/jitmeet' room='r@c'>{"key":"k","data":[1, "<>"]}</room_metadata>`)
	f.Add(`<json-message xmlns='http://jitsi.org/jitmeet'>{"type":"room_metadata","metadata":{"a":null}}</json-message>`)
	f.Fuzz(func(t *testing.T, s string) {
		e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
		if err != nil {
			return
		}
		if v, err := ParseSourceInfo(e); err == nil {
			if again, err := ParseSourceInfo(parse(t, v.Element().String())); err != nil || !cmp.Equal(v, again) {
				t.Fatalf("%v becomes %v, %v", v, again, err)
			}
		}
		if v, err := ParseMute(e); err == nil {
			if again, err := ParseMute(parse(t, v.Element().String())); err != nil || v != again {
				t.Fatalf("%v becomes %v, %v", v, again, err)
			}
		}
		if v, err := ParseMetadataChange(e); err == nil {
			again, err := ParseMetadataChange(parse(t, v.Element().String()))
			if err != nil || again.Key != v.Key || again.Room != v.Room {
				t.Fatalf("%v becomes %v, %v", v, again, err)
			}
		}
		if v, err := ParseJSONMessage(e); err == nil {
			if m, err := ParseRoomMetadata(v); err == nil {
				if again, err := ParseRoomMetadata(m.Message(v.Room)); err != nil || len(again) != len(m) {
					t.Fatalf("%s becomes %s, %v", m, again, err)
				}
			}
		}
	})
}
