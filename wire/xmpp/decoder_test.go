package xmpp

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

const opening = `<?xml version='1.0'?> <stream:stream xmlns='jabber:client' to='auth.meet.local' xmlns:stream='http://etherx.jabber.org/streams' version='1.0' from='jvb@auth.meet.local' xml:lang='en'>`

func TestDecoder(t *testing.T) {
	in := opening + "\n <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGE=</auth>" + opening + ` ` +
		`<iq type='get' id='a&gt;"b'><ping xmlns='urn:xmpp:ping' a=">'/>"/><x y='"/>'></x></iq>` + "\r\n\t" +
		`<presence/><stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream >junk`
	header := New(NSStream, "stream", "to", "auth.meet.local", "version", "1.0", "from", "jvb@auth.meet.local", "xml:lang", "en")
	want := []*Element{
		header,
		New(NSSASL, "auth", "mechanism", "PLAIN").AddText("AGE="),
		header,
		New("", "iq", "type", "get", "id", `a>"b`).Add(New(NSPing, "ping", "a", ">'/>"), New("", "x", "y", `"/>`)),
		New("", "presence"),
		New(NSStream, "error").Add(New(NSStreams, "not-authorized")),
	}
	for name, r := range map[string]io.Reader{
		"whole": strings.NewReader(in), "bytes": iotest.OneByteReader(strings.NewReader(in)), "halves": iotest.HalfReader(strings.NewReader(in)),
		"data and error": iotest.DataErrReader(strings.NewReader(in)),
	} {
		d := NewDecoder(r, Limits{})
		for i, w := range want {
			got, err := d.Next()
			if err != nil {
				t.Fatalf("%s: %d: %v", name, i, err)
			}
			if diff := cmp.Diff(w, got); diff != "" {
				t.Errorf("%s: %d: -want +got\n%s", name, i, diff)
			}
		}
		if e, err := d.Next(); err != io.EOF {
			t.Errorf("%s: %v, %v, want EOF", name, e, err)
		}
	}
}

func TestHeader(t *testing.T) {
	want := Header{From: "meet.local", To: "a@meet.local", ID: "s'1", Version: "1.0", Lang: "en"}
	d := NewDecoder(strings.NewReader(string(want.Append(nil))+`<a/>`+StreamEnd), Limits{})
	if got, err := d.Header(); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := d.Header(); !errors.Is(err, ErrSyntax) {
		t.Errorf("a stanza as header: %v", err)
	}
}

func TestDecoderRefuses(t *testing.T) {
	for _, c := range []struct {
		in   string
		want error
	}{
		{"", io.ErrUnexpectedEOF}, {"   ", io.ErrUnexpectedEOF}, {"GET / HTTP/1.1\r\n", ErrSyntax}, {"<a/>", ErrSyntax}, {"</stream:stream>", ErrSyntax}, {"<stream:stream>", ErrSyntax},
		{"<stream/>", ErrSyntax}, {"<stream xmlns='jabber:client'>", ErrSyntax}, {"<!DOCTYPE a>", ErrForbidden}, {"<?php echo ?>", ErrForbidden}, {"<?xml version='1.0'?>", io.ErrUnexpectedEOF},
		{"<?xml version='1.0'?><a/>", ErrSyntax}, {"<?xml <b?>" + opening, ErrForbidden},
		{opening, io.ErrUnexpectedEOF}, {opening + "<a>", io.ErrUnexpectedEOF}, {opening + "<a><b></a>", io.ErrUnexpectedEOF}, {opening + "x", ErrSyntax}, {opening + "<a></b>", ErrSyntax},
		{opening + "</stream>", ErrSyntax}, {opening + "<?xml version='1.0'?><a/>", ErrSyntax}, {opening + "<?xml version='1.0'?></stream:stream>", ErrSyntax},
		{opening + "<a><!-- -->", ErrForbidden}, {opening + "<a><![CDATA[", ErrForbidden}, {opening + "<!ENTITY", ErrForbidden}, {opening + "<a>\xff</a>", ErrSyntax},
		{opening + "<a>" + strings.Repeat("x", 1000), ErrTooLarge}, {opening + "<a " + strings.Repeat("x", 1000), ErrTooLarge}, {opening + strings.Repeat("<a>", 9) + strings.Repeat("</a>", 9), ErrTooDeep},
		{"<?xml " + strings.Repeat("x", 1000), ErrTooLarge},
	} {
		d := NewDecoder(iotest.OneByteReader(strings.NewReader(c.in)), Limits{Bytes: 500, Depth: 8})
		var err error
		for err == nil {
			_, err = d.Next()
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%.60q: %v, want %v", strings.TrimPrefix(c.in, opening), err, c.want)
		}
	}
	if _, err := NewDecoder(iotest.ErrReader(io.ErrClosedPipe), Limits{}).Next(); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// TestDecoderAgreesWithParse sends large and small stanzas through one buffer.
func TestDecoderAgreesWithParse(t *testing.T) {
	var stream strings.Builder
	stream.WriteString(opening)
	var want []string
	for i := range 300 {
		e := New("", "message").SetInt("id", int64(i)).Add(New("", "body").AddText(strings.Repeat("0123456789", i*i%1700)))
		want = append(want, e.String())
		stream.WriteString(e.String())
	}
	d := NewDecoder(iotest.HalfReader(strings.NewReader(stream.String())), Limits{})
	if _, err := d.Header(); err != nil {
		t.Fatal(err)
	}
	for i, w := range want {
		e, err := d.Next()
		if err != nil || e.String() != w {
			t.Fatalf("%d: %.80s, %v", i, e, err)
		}
	}
}

// TestDecoderSlashes: a slash in an attribute does not make a tag empty, wherever the bytes are cut in two.
func TestDecoderSlashes(t *testing.T) {
	const stanza = `<iq id='/' a="/b/"><query xmlns='http://jabber.org/protocol/disco#info' node='/'><c d='http://e/'/></query></iq>`
	for cut := range len(stanza) {
		r := io.MultiReader(strings.NewReader(opening), strings.NewReader(stanza[:cut]), strings.NewReader(stanza[cut:]))
		d := NewDecoder(r, Limits{})
		if _, err := d.Header(); err != nil {
			t.Fatal(err)
		}
		e, err := d.Next()
		if err != nil {
			t.Fatalf("cut at %q: %v", stanza[cut:], err)
		}
		if c := e.First().First(); c == nil || c.Attr("d") != "http://e/" {
			t.Errorf("cut at %q: %s", stanza[cut:], e)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add(opening + "<a><b c='>'/>d</a>" + StreamEnd)
	f.Add(opening + "<a b='http://c/' d='/'>e</a>" + StreamEnd)
	f.Add("<s:stream xmlns:s='http://etherx.jabber.org/streams'><s:x/><y xmlns='z'/></s:stream>")
	f.Fuzz(func(t *testing.T, s string) {
		read := func(r io.Reader) (out []string, err error) {
			d := NewDecoder(r, Limits{Bytes: 4096})
			for {
				e, err := d.Next()
				if err != nil {
					return out, err
				}
				out = append(out, e.String())
			}
		}
		whole, err := read(strings.NewReader(s))
		for name, r := range map[string]io.Reader{
			"bytes":  iotest.OneByteReader(strings.NewReader(s)),
			"halves": io.MultiReader(strings.NewReader(s[:len(s)/2]), strings.NewReader(s[len(s)/2:])),
			"thirds": io.MultiReader(strings.NewReader(s[:len(s)/3]), strings.NewReader(s[len(s)/3:])),
		} {
			pieces, err2 := read(r)
			if diff := cmp.Diff(whole, pieces); diff != "" || (err == io.EOF) != (err2 == io.EOF) {
				t.Fatalf("%s: %v, %v\n%s", name, err, err2, diff)
			}
		}
	})
}
