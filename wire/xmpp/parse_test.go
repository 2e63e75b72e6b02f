package xmpp

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want *Element
		out  string // when Append writes it differently
	}{
		{`<a/>`, New("", "a"), `<a xmlns='jabber:client'/>`},
		{`<iq xmlns='jabber:client' id='1'/>`, New("", "iq", "id", "1"), ``},
		{` <a b = "c'd" ></a > `, New("", "a", "b", "c'd"), `<a xmlns='jabber:client' b='c&apos;d'/>`},
		{`<message xmlns='jabber:client'><body>1 &lt; 2 &amp; ü</body></message>`,
			New("", "message").Add(New("", "body").AddText("1 < 2 & ü")), ``},
		{`<a xmlns='urn:a'><b/><c xmlns='urn:c'><d/></c><e/>text</a>`,
			New("urn:a", "a").Add(New("urn:a", "b"), New("urn:c", "c").Add(New("urn:c", "d")), New("urn:a", "e")).AddText("text"),
			`<a xmlns='urn:a'><b xmlns='urn:a'/><c xmlns='urn:c'><d xmlns='urn:c'/></c><e xmlns='urn:a'/>text</a>`},
		{`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></stream:features>`,
			New(NSStream, "features").Add(New(NSBind, "bind")), ``},
		{`<p:a xmlns:p='urn:p' p:x='1' xml:lang='en' y='2'><p:b xmlns:p='urn:q'/><p:c/></p:a>`,
			New("urn:p", "a", "xml:lang", "en", "y", "2").Add(New("urn:q", "b"), New("urn:p", "c")),
			`<a xmlns='urn:p' xml:lang='en' y='2'><b xmlns='urn:q'/><c xmlns='urn:p'/></a>`},
		{"<a b='x\ty&#9;z\r\n'>1\r\n2\r3&#13;&#x1F600;</a>", New("", "a", "b", "x y\tz ").AddText("1\n2\n3\r😀"),
			"<a xmlns='jabber:client' b='x y&#9;z '>1&#10;2&#10;3&#13;😀</a>"},
		{`<a b=''/>`, &Element{Name: "a", Attrs: []Attr{{"b", ""}}}, `<a xmlns='jabber:client' b=''/>`},
		{`<a>]]<b/>></a>`, New("", "a").AddText("]]").Add(New("", "b")).AddText(">"), `<a xmlns='jabber:client'>]]<b/>&gt;</a>`},
	} {
		got, err := Parse([]byte(c.in), Limits{})
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if diff := cmp.Diff(normal(c.want), got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.in, diff)
		}
		out := c.out
		if out == "" {
			out = c.in
		}
		if got.String() != out {
			t.Errorf("%s: written as\n%s, want\n%s", c.in, got, out)
		}
	}
}

// normal spells jabber:client as Parse does.
func normal(e *Element) *Element {
	c := *e
	if c.Space == NSClient {
		c.Space = ""
	}
	c.Nodes = nil
	for _, n := range e.Nodes {
		if n.Element != nil {
			n.Element = normal(n.Element)
		}
		c.Nodes = append(c.Nodes, n)
	}
	return &c
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		in   string
		want error
	}{
		{"", ErrSyntax}, {" ", ErrSyntax}, {"a", ErrSyntax}, {"<", ErrSyntax}, {"<a", ErrSyntax}, {"<a>", ErrSyntax}, {"<a/", ErrSyntax}, {"</a>", ErrSyntax},
		{"<a></b>", ErrSyntax}, {"<ab></a>", ErrSyntax}, {"<a></ab>", ErrSyntax}, {"<a/><b/>", ErrSyntax}, {"<a/>x", ErrSyntax}, {"x<a/>", ErrSyntax},
		{"<a b/>", ErrSyntax}, {"<a b=c/>", ErrSyntax}, {"<a b='c/>", ErrSyntax}, {"<a b='<'/>", ErrSyntax}, {"<a b='1'c='2'/>", ErrSyntax}, {"< a/>", ErrSyntax},
		{"<a b='1' b='2'/>", ErrSyntax}, {"<a xmlns='x' xmlns='y'/>", ErrSyntax}, {"<p:a/>", ErrSyntax}, {"<a p:b='1'/>", ErrSyntax}, {"<a xmlns:p=''/>", ErrSyntax},
		{"<a:b:c xmlns:a='x'/>", ErrSyntax}, {"<1/>", ErrSyntax}, {"<a 1='1'/>", ErrSyntax}, {"<ü/>", ErrSyntax}, {"<xml:a/>", ErrSyntax}, {"<a xmlns:xml='x'/>", ErrSyntax},
		{"<a xmlns='http://www.w3.org/2000/xmlns/'/>", ErrSyntax}, {"<a>]]></a>", ErrSyntax}, {"<a>\x00</a>", ErrSyntax}, {"<a>\x1b</a>", ErrSyntax}, {"<a>\xff</a>", ErrSyntax},
		{"<a>\uFFFE</a>", ErrSyntax}, {"<a>\xed\xa0\x80</a>", ErrSyntax},
		{"<a>&</a>", ErrSyntax}, {"<a>&;</a>", ErrSyntax}, {"<a>&amp</a>", ErrSyntax}, {"<a>&#0;</a>", ErrSyntax}, {"<a>&#xD800;</a>", ErrSyntax}, {"<a>&#xFFFF;</a>", ErrSyntax},
		{"<a>&#x110000;</a>", ErrSyntax}, {"<a>&#99999999999;</a>", ErrSyntax}, {"<a>&#;</a>", ErrSyntax}, {"<a>&#x;</a>", ErrSyntax}, {"<a>&#+1;</a>", ErrSyntax},
		{"<a>&lol;</a>", ErrForbidden}, {"<!DOCTYPE a><a/>", ErrForbidden}, {"<?xml version='1.0'?><a/>", ErrForbidden}, {"<a><?b?></a>", ErrForbidden},
		{"<a><!-- x --></a>", ErrForbidden}, {"<a><![CDATA[x]]></a>", ErrForbidden}, {"\ufeff<a/>", ErrSyntax},
		{strings.Repeat("<a>", 9) + strings.Repeat("</a>", 9), ErrTooDeep}, {"<a>" + strings.Repeat("<b/>", 20) + "</a>", ErrTooLarge},
		{"<a a='' b='' c='' d='' e=''/>", ErrTooLarge}, {"<a>" + strings.Repeat("x", 1000) + "</a>", ErrTooLarge},
	} {
		if e, err := Parse([]byte(c.in), Limits{Bytes: 1000, Depth: 8, Elements: 20, Attrs: 4}); !errors.Is(err, c.want) {
			t.Errorf("%.60q: %v, %v, want %v", c.in, e, err, c.want)
		}
	}
}

func TestParsedTreesGrowApart(t *testing.T) {
	e, err := Parse([]byte(`<a x='1'><b y='2'/><c z='3'/></a>`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	e.SetAttr("new", "4")
	e.Child("", "b").SetAttr("new", "5").AddText("t")
	e.Add(New("", "d"))
	if got, want := e.String(), `<a xmlns='jabber:client' x='1' new='4'><b y='2' new='5'>t</b><c z='3'/><d/></a>`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
