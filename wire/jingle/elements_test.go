package jingle

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/xmpp"
)

// both checks that xml reads as want, and that what want writes reads as want again.
func both[T any](t *testing.T, xml string, want T, read func(*xmpp.Element) (T, error), write func(T) *xmpp.Element) {
	t.Helper()
	got, err := read(element(t, xml))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%s: %v, -want +got\n%s", xml, err, diff)
	}
	again, err := read(element(t, write(want).String()))
	if diff := cmp.Diff(want, again); err != nil || diff != "" {
		t.Errorf("%s: %v, -want +got\n%s", write(want), err, diff)
	}
}

func element(t testing.TB, s string) *xmpp.Element {
	t.Helper()
	e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return e
}

func TestElements(t *testing.T) {
	both(t, `<payload-type xmlns='urn:xmpp:jingle:apps:rtp:1' id='111' name='opus' clockrate='48000' channels='2'><parameter name='minptime' value='10'/><parameter value='111/111'/><rtcp-fb xmlns='urn:xmpp:jingle:apps:rtp:rtcp-fb:0' type='transport-cc'/></payload-type>`,
		PayloadType{ID: 111, Name: "opus", Clockrate: 48000, Channels: 2, Parameters: []Parameter{{"minptime", "10"}, {"", "111/111"}}, Feedback: []Feedback{{Type: "transport-cc"}}},
		ParsePayloadType, PayloadType.Element)
	both(t, `<rtp-hdrext xmlns='urn:xmpp:jingle:apps:rtp:rtp-hdrext:0' id='1' uri='urn:ietf:params:rtp-hdrext:ssrc-audio-level'/>`,
		HeaderExtension{1, "urn:ietf:params:rtp-hdrext:ssrc-audio-level"}, ParseHeaderExtension, HeaderExtension.Element)
	both(t, `<transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='2ing91k7t9ibqn' pwd='6ad0qpqm4fimvev6gblko6o50l' ice-generation='1'><rtcp-mux/>`+
		`<fingerprint required='false' setup='actpass' cryptex='true' hash='sha-256' xmlns='urn:xmpp:jingle:apps:dtls:0'> D4:2B:3B `+"\n"+`</fingerprint>`+
		`<web-socket xmlns='http://jitsi.org/protocol/colibri' url='wss://meet.example/colibri-ws/b/c/e?pwd=x'/>`+
		`<candidate foundation='2' type='srflx' id='c2' component='1' port='10000' priority='1694498815' ip='203.0.113.9' network='0' generation='0' protocol='udp' rel-addr='10.0.0.5' rel-port='9'/></transport>`,
		Transport{Ufrag: "2ing91k7t9ibqn", Pwd: "6ad0qpqm4fimvev6gblko6o50l", Generation: 1, RTCPMux: true,
			Fingerprints: []Fingerprint{{Hash: "sha-256", Setup: "actpass", Value: "D4:2B:3B", Cryptex: true}}, WebSockets: []string{"wss://meet.example/colibri-ws/b/c/e?pwd=x"},
			Candidates: []Candidate{{ID: "c2", Foundation: "2", Component: 1, Priority: 1694498815, Protocol: "udp", Type: "srflx", IP: "203.0.113.9", Port: 10000, RelIP: "10.0.0.5", RelPort: 9}}},
		ParseTransport, Transport.Element)
	both(t, `<source name="bbbb2222-v0" ssrc="4294967295" videoType="camera" xmlns="urn:xmpp:jingle:apps:rtp:ssma:0"><parameter name="msid" value="bbbb2222-video-0-1 uuid-1"/></source>`,
		Source{SSRC: 1<<32 - 1, Name: "bbbb2222-v0", VideoType: "camera", MSID: "bbbb2222-video-0-1 uuid-1"}, ParseSource, Source.Element)
	both(t, `<ssrc-group semantics="FID" xmlns="urn:xmpp:jingle:apps:rtp:ssma:0"><source ssrc="3027853102"/><source ssrc="2049468128"/></ssrc-group>`,
		SourceGroup{"FID", []uint32{3027853102, 2049468128}}, ParseSourceGroup, SourceGroup.Element)
	if (PayloadType{Parameters: []Parameter{{"apt", "100"}}}).Parameter("apt") != "100" {
		t.Error("Parameter")
	}
}

func TestElementsRefused(t *testing.T) {
	read := map[string]func(*xmpp.Element) error{
		"payload-type": func(e *xmpp.Element) error { _, err := ParsePayloadType(e); return err },
		"rtp-hdrext":   func(e *xmpp.Element) error { _, err := ParseHeaderExtension(e); return err },
		"transport":    func(e *xmpp.Element) error { _, err := ParseTransport(e); return err },
		"source":       func(e *xmpp.Element) error { _, err := ParseSource(e); return err },
		"ssrc-group":   func(e *xmpp.Element) error { _, err := ParseSourceGroup(e); return err },
	}
	spaces := map[string]string{"payload-type": NSRTP, "rtp-hdrext": NSHeader, "transport": NSICE, "source": NSSource, "ssrc-group": NSSource}
	many := func(s string, n int) string { return strings.Repeat(s, n) }
	for _, c := range []struct {
		name, attrs, inner string
		want               error
	}{
		{"payload-type", ``, ``, ErrElement}, {"payload-type", `id='128'`, ``, ErrElement}, {"payload-type", `id='-1'`, ``, ErrElement}, {"payload-type", `id='1' clockrate='x'`, ``, ErrElement},
		{"payload-type", `id='1' channels='999'`, ``, ErrElement}, {"payload-type", `id='1'`, many(`<parameter name='a'/>`, maxParameters+1), ErrTooMany},
		{"payload-type", `id='1'`, many(`<rtcp-fb xmlns='urn:xmpp:jingle:apps:rtp:rtcp-fb:0' type='nack'/>`, maxFeedback+1), ErrTooMany},
		{"rtp-hdrext", `id='0' uri='x'`, ``, ErrElement}, {"rtp-hdrext", `id='1'`, ``, ErrElement}, {"rtp-hdrext", `id='256' uri='x'`, ``, ErrElement},
		{"transport", `ice-generation='x'`, ``, ErrElement}, {"transport", ``, `<candidate/>`, ErrElement}, {"transport", ``, `<candidate ip='1' port='65536'/>`, ErrElement},
		{"transport", ``, many(`<candidate ip='1'/>`, maxCandidates+1), ErrTooMany}, {"transport", ``, many(`<fingerprint xmlns='urn:xmpp:jingle:apps:dtls:0'/>`, maxFingerprints+1), ErrTooMany},
		{"transport", ``, many(`<web-socket xmlns='http://jitsi.org/protocol/colibri' url='x'/>`, maxWebSockets+1), ErrTooMany},
		{"source", ``, ``, ErrElement}, {"source", `ssrc='0'`, ``, ErrElement}, {"source", `ssrc='4294967296'`, ``, ErrElement}, {"source", `ssrc='-1'`, ``, ErrElement},
		{"ssrc-group", ``, ``, ErrElement}, {"ssrc-group", `semantics='SIM'`, `<source ssrc='x'/>`, ErrElement}, {"ssrc-group", `semantics='SIM'`, many(`<source ssrc='1'/>`, maxGroup+1), ErrTooMany},
	} {
		e := element(t, `<`+c.name+` xmlns='`+spaces[c.name]+`' `+c.attrs+`>`+c.inner+`</`+c.name+`>`)
		if err := read[c.name](e); !errors.Is(err, c.want) {
			t.Errorf("%.100s: %v, want %v", e, err, c.want)
		}
	}
	for name, f := range read {
		if err := errors.Join(f(nil), f(xmpp.New("", name))); !errors.Is(err, ErrElement) {
			t.Errorf("%s: nothing: %v", name, err)
		}
	}
}

func FuzzElements(f *testing.F) {
	f.Add(`<payload-type xmlns='urn:xmpp:jingle:apps:rtp:1' id='111' name='opus'><parameter name='minptime' value='10'/></payload-type>`)
	f.Add(`<transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='u'><candidate ip='10.0.0.1' port='1'/><fingerprint xmlns='urn:xmpp:jingle:apps:dtls:0'>A</fingerprint></transport>`)
	f.Add(`<source ssrc='1' xmlns='urn:xmpp:jingle:apps:rtp:ssma:0'><parameter name='msid' value='a b'/></source>`)
	f.Add(`<ssrc-group semantics='SIM' xmlns='urn:xmpp:jingle:apps:rtp:ssma:0'><source ssrc='1'/></ssrc-group>`)
	f.Fuzz(func(t *testing.T, s string) {
		e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
		if err != nil {
			return
		}
		stable(t, e, ParsePayloadType, PayloadType.Element)
		stable(t, e, ParseHeaderExtension, HeaderExtension.Element)
		stable(t, e, ParseTransport, Transport.Element)
		stable(t, e, ParseSource, Source.Element)
		stable(t, e, ParseSourceGroup, SourceGroup.Element)
	})
}

func stable[T any](t *testing.T, e *xmpp.Element, read func(*xmpp.Element) (T, error), write func(T) *xmpp.Element) {
	v, err := read(e)
	if err != nil {
		return
	}
	again, err := read(element(t, write(v).String()))
	if diff := cmp.Diff(v, again); err != nil || diff != "" {
		t.Fatalf("%s: %v\n%s", e, err, diff)
	}
}
