package jingle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/xmpp"
)

// TestGoldenSessions takes stanzas recorded from Jicofo and from lib-jitsi-meet through a value and
// back. Nothing may be lost but the attributes that say no.
func TestGoldenSessions(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.xml")
	if len(files) < 10 {
		t.Fatalf("%d golden stanzas", len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			e := readElement(t, file)
			s, err := Parse(e)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(canonical(e), canonical(s.Element())); diff != "" {
				t.Errorf("element (-recorded +ours):\n%s", diff)
			}
			again, err := Parse(reparse(t, s.Element()))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s, again); diff != "" {
				t.Errorf("value changed on the way:\n%s", diff)
			}
		})
	}
}

func TestParseSessionAccept(t *testing.T) {
	s, err := Parse(readElement(t, "testdata/session-accept.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Action != SessionAccept || s.SID != "eka579oqiahi5" || !slices.Equal(s.Bundle, []string{"audio", "video", "data"}) {
		t.Errorf("got %q %q %q", s.Action, s.SID, s.Bundle)
	}
	video := s.Content("video")
	if len(video.PayloadTypes) != 8 || video.PayloadTypes[4].Name != "VP8" || len(video.Sources) != 6 || !video.ExtmapAllowMixed || !video.RTCPMux {
		t.Errorf("video %+v", video)
	}
	want := []SourceGroup{
		{"FID", []uint32{3027853102, 2049468128}}, {"SIM", []uint32{3027853102, 601493784, 658210161}},
		{"FID", []uint32{601493784, 3071637025}}, {"FID", []uint32{658210161, 3373117573}},
	}
	if diff := cmp.Diff(want, video.Groups); diff != "" {
		t.Error(diff)
	}
	if data := s.Content("data"); data.Media != "" || data.SCTP == nil || data.SCTP.Port != 5000 {
		t.Errorf("data %+v", data)
	}
	tr := s.Transport()
	if tr.Ufrag != "UEeD" || tr.Fingerprints[0].Setup != "active" || tr.RTCPMux {
		t.Errorf("transport %+v", tr)
	}
	if s.Content("nobody") != nil || (&Session{}).Transport() != nil {
		t.Error("found what is not there")
	}
}

func TestParseOfferSources(t *testing.T) {
	s, err := Parse(readElement(t, "testdata/session-initiate.xml"))
	if err != nil {
		t.Fatal(err)
	}
	want := []EndpointSources{{
		Owner: "jvb",
		Video: MediaSources{Sources: []Source{{394596374, "jvb-v0", "camera", "mixedmslabel mixedlabelvideo0"}}},
		Audio: MediaSources{Sources: []Source{{3743242118, "jvb-a0", "", "mixedmslabel mixedlabelaudio0"}}},
	}}
	if diff := cmp.Diff(want, s.Sources); diff != "" {
		t.Error(diff)
	}
}

func TestSourcesEncoding(t *testing.T) {
	camera := Source{11, "a-v0", "camera", "m t"}
	for _, c := range []struct {
		json    string
		sources []EndpointSources
	}{
		{`{"sources":{}}`, nil},
		{`{"sources":{"a":[]}}`, []EndpointSources{{Owner: "a"}}},
		{`{"sources":{"a":[[{"s":11,"n":"a-v0","m":"m t"}]]}}`, []EndpointSources{{Owner: "a", Video: MediaSources{Sources: []Source{camera}}}}},
		{`{"sources":{"b":[[],[],[{"s":4294967295}]],"a":[[{"s":5,"n":"a-v1","v":"d"},{"s":6,"n":"a-v1","v":"d"}],[["f",5,6],["s",5]]]}}`, []EndpointSources{
			{Owner: "b", Audio: MediaSources{Sources: []Source{{SSRC: 1<<32 - 1}}}},
			{Owner: "a", Video: MediaSources{
				Sources: []Source{{SSRC: 5, Name: "a-v1", VideoType: "desktop"}, {SSRC: 6, Name: "a-v1", VideoType: "desktop"}},
				Groups:  []SourceGroup{{"FID", []uint32{5, 6}}, {"SIM", []uint32{5}}},
			}},
		}},
		{`{"sources":{"<&>":[[],[],[],[["FEC-FR",1,2]]]}}`, []EndpointSources{{Owner: "<&>", Audio: MediaSources{Groups: []SourceGroup{{"FEC-FR", []uint32{1, 2}}}}}}},
	} {
		got, err := ParseSources([]byte(c.json))
		if err != nil {
			t.Errorf("%s: %v", c.json, err)
		}
		if diff := cmp.Diff(c.sources, got); diff != "" {
			t.Errorf("%s:\n%s", c.json, diff)
		}
		if out := string(AppendSources(nil, c.sources)); out != c.json {
			t.Errorf("encoded %s, want %s", out, c.json)
		}
	}
	got, err := ParseSources([]byte(`{"sources":{"a":[[],[["f","1",2]],[{"s":"7"}]]},"x":1}`))
	if err != nil || got[0].Audio.Sources[0].SSRC != 7 || got[0].Video.Groups[0].SSRCs[0] != 1 {
		t.Errorf("numbers as strings: %+v %v", got, err)
	}
}

func TestSourcesRejected(t *testing.T) {
	for _, s := range []string{
		``, `[]`, `{"sources":7}`, `{"sources":{"a":{}}}`, `{"sources":{"a":[[{"s":0}]]}}`, `{"sources":{"a":[[{"s":-1}]]}}`, `{"sources":{"a":[[{}]]}}`,
		`{"sources":{"a":[[{"s":4294967296}]]}}`, `{"sources":{"a":[[],[["f",0]]]}}`, `{"sources":{"a":[[],[[]]]}}`, `{"sources":{"a":[[],[[1,2]]]}}`,
		`{"sources":{"a":[[],[],[],[],[]]}}`, `{"sources":{"a":[[7]]}}`, `{"sources":{"a":[7]}}`,
	} {
		if got, err := ParseSources([]byte(s)); !errors.Is(err, ErrSources) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	many := `{"sources":{"a":[[` + strings.Repeat(`{"s":1},`, maxSources) + `{"s":1}]]}}`
	if _, err := ParseSources([]byte(many)); !errors.Is(err, ErrTooMany) {
		t.Errorf("many sources: %v", err)
	}
	if _, err := ParseSources(make([]byte, maxSourcesBytes+1)); !errors.Is(err, ErrTooMany) {
		t.Errorf("many bytes: %v", err)
	}
}

func TestParseRejects(t *testing.T) {
	for _, s := range []string{
		`<jingle/>`, `<iq xmlns='urn:xmpp:jingle:1' action='a' sid='b'/>`, `<jingle xmlns='urn:xmpp:jingle:1' action='a'/>`, `<jingle xmlns='urn:xmpp:jingle:1' sid='a'/>`,
		inContent(`<source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='0'/>`),
		inContent(`<source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='4294967296'/>`),
		inContent(`<source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='-1'/>`),
		inContent(`<payload-type id='128'/>`),
		`<jingle xmlns='urn:xmpp:jingle:1' action='a' sid='b'><json-message xmlns='http://jitsi.org/jitmeet'>{</json-message></jingle>`,
		`<jingle xmlns='urn:xmpp:jingle:1' action='a' sid='b'><content><initial-last-n xmlns='jitsi:colibri2' value='x'/></content></jingle>`,
	} {
		e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
		if err != nil {
			t.Fatal(s, err)
		}
		if got, err := Parse(e); err == nil {
			t.Errorf("%s: got %+v", s, got)
		}
	}
	e := xmpp.New(NS, "jingle", "action", "a", "sid", "b")
	for range maxContents + 1 {
		e.Add(xmpp.New(NS, "content"))
	}
	if _, err := Parse(e); !errors.Is(err, ErrTooMany) {
		t.Errorf("contents: %v", err)
	}
	d := xmpp.New(NSRTP, "description", "media", "video")
	for i := range maxSources + 1 {
		d.Add(Source{SSRC: uint32(i + 1)}.Element())
	}
	e = xmpp.New(NS, "jingle", "action", "a", "sid", "b").Add(xmpp.New(NS, "content").Add(d))
	if _, err := Parse(e); !errors.Is(err, ErrTooMany) {
		t.Errorf("sources: %v", err)
	}
}

func inContent(s string) string {
	return `<jingle xmlns='urn:xmpp:jingle:1' action='a' sid='b'><content name='c'><description xmlns='urn:xmpp:jingle:apps:rtp:1' media='video'>` + s + `</description></content></jingle>`
}

func FuzzParseSession(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.xml")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := xmpp.Parse(b, xmpp.Limits{})
		if err != nil {
			return
		}
		s, err := Parse(e)
		if err != nil {
			return
		}
		again, err := Parse(s.Element())
		if err != nil {
			t.Fatalf("our own %s: %v", s.Element(), err)
		}
		third, err := Parse(again.Element())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(again, third); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzParseSources(f *testing.F) {
	f.Add([]byte(`{"sources":{"jvb":[[{"s":394596374,"n":"jvb-v0","m":"mixedmslabel mixedlabelvideo0"}],[],[{"s":"3743242118","n":"jvb-a0"}]],"b":[[{"s":1,"v":"d"}],[["f",1,2],["s",1,2,3]]]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSources(b)
		if err != nil {
			return
		}
		again, err := ParseSources(AppendSources(nil, s))
		if err != nil {
			t.Fatal(err)
		}
		first, second := AppendSources(nil, s), AppendSources(nil, again)
		if string(first) != string(second) {
			t.Errorf("%s became %s", first, second)
		}
	})
}

func readElement(t *testing.T, file string) *xmpp.Element {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e, err := xmpp.Parse(b, xmpp.Limits{})
	if err != nil {
		t.Fatal(file, err)
	}
	return e
}

func reparse(t *testing.T, e *xmpp.Element) *xmpp.Element {
	t.Helper()
	r, err := xmpp.Parse(e.Append(nil), xmpp.Limits{})
	if err != nil {
		t.Fatalf("%s: %v", e, err)
	}
	return r
}

// canonical writes an element a line per element, attributes and siblings sorted. Attributes that say
// no are left out; the order that matters, that of SSRCs in a group, is kept.
func canonical(e *xmpp.Element) []string {
	var attrs []string
	for _, a := range e.Attrs {
		if a.Value != "false" {
			attrs = append(attrs, fmt.Sprintf("%s=%q", a.Name, a.Value))
		}
	}
	slices.Sort(attrs)
	lines := []string{fmt.Sprintf("{%s}%s %s %q", e.Space, e.Name, strings.Join(attrs, " "), strings.TrimSpace(e.Text()))}
	var children []string
	for c := range e.Children {
		children = append(children, strings.Join(canonical(c), "\n"))
	}
	if e.Name != "ssrc-group" {
		slices.Sort(children)
	}
	for _, c := range children {
		for _, l := range strings.Split(c, "\n") {
			lines = append(lines, "  "+l)
		}
	}
	return lines
}
