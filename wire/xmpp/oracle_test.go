package xmpp

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// oracle reads b with encoding/xml, in the spelling of Parse.
func oracle(b []byte) (*Element, error) {
	d := xml.NewDecoder(bytes.NewReader(b))
	var root *Element
	var open []*Element
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return root, nil
		}
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			e := &Element{Name: t.Name.Local, Space: t.Name.Space}
			if e.Space == NSClient {
				e.Space = ""
			}
			for _, a := range t.Attr {
				switch a.Name.Space {
				case "":
					if a.Name.Local != "xmlns" {
						e.Attrs = append(e.Attrs, Attr{a.Name.Local, a.Value})
					}
				case nsXML:
					e.Attrs = append(e.Attrs, Attr{"xml:" + a.Name.Local, a.Value})
				}
			}
			if len(open) > 0 {
				open[len(open)-1].Add(e)
			} else {
				root = e
			}
			open = append(open, e)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].AddText(string(t))
			}
		}
	}
}

// spaces makes white space in attributes and so in namespaces equal: encoding/xml does not normalise it.
func spaces(e *Element) *Element {
	r := strings.NewReplacer("\t", " ", "\n", " ", "\r", " ")
	e.Space = r.Replace(e.Space)
	for i, a := range e.Attrs {
		e.Attrs[i].Value = r.Replace(a.Value)
	}
	for c := range e.Children {
		spaces(c)
	}
	return e
}

// FuzzParse holds that what Parse accepts encoding/xml reads alike, and that it survives being written.
func FuzzParse(f *testing.F) {
	f.Add(`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><a xmlns='b'>&lt;&#x41;</a></stream:features>`)
	f.Add("<p:a xmlns:p='urn:p' p:x='1' xml:lang='en' y=\"2\r\n\"><p:b xmlns:p='urn:q'/>\r]]</p:a>")
	f.Add(`<message><body>hi &amp; ü 😀</body><x xmlns=''/></message>`)
	f.Fuzz(func(t *testing.T, s string) {
		e, err := Parse([]byte(s), Limits{})
		if err != nil {
			return
		}
		again, err := Parse(e.Append(nil), Limits{Bytes: 1 << 22, Attrs: 1 << 10})
		if err != nil {
			t.Fatalf("%s: %v", e, err)
		}
		if diff := cmp.Diff(e, again); diff != "" {
			t.Fatalf("written: %s", diff)
		}
		want, err := oracle([]byte(s))
		if err != nil {
			t.Fatalf("encoding/xml refuses %q: %v", s, err)
		}
		if diff := cmp.Diff(spaces(want), spaces(e)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGolden(t *testing.T) {
	for _, name := range []string{"presence.xml", "session-accept.xml"} {
		b := golden(t, name)
		e, err := Parse(b, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := oracle(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, e); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
		again, err := Parse(e.Append(nil), Limits{})
		if diff := cmp.Diff(e, again); err != nil || diff != "" {
			t.Errorf("%s: written: %v\n%s", name, err, diff)
		}
	}
}

// The presence is parsed once and sent to everybody, thousands of times a second.
func TestAllocations(t *testing.T) {
	b := golden(t, "presence.xml")
	e, err := Parse(b, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(b, Limits{}) }); n > 12 {
		t.Errorf("Parse: %v allocations", n)
	}
	buf := e.Append(nil)
	if n := testing.AllocsPerRun(100, func() { buf = e.Append(buf[:0]) }); n != 0 {
		t.Errorf("Append: %v allocations", n)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"presence", "session-accept"} {
		b.Run(name, func(b *testing.B) {
			data := golden(b, name+".xml")
			slow := each(b, 50, func() error { _, err := oracle(data); return err })
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(data, Limits{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(slow)/float64(b.Elapsed())*float64(b.N), "x-encoding/xml")
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, name := range []string{"presence", "session-accept"} {
		b.Run(name, func(b *testing.B) {
			e, err := Parse(golden(b, name+".xml"), Limits{})
			if err != nil {
				b.Fatal(err)
			}
			slow := each(b, 50, func() error { return encode(xml.NewEncoder(io.Discard), e) })
			buf := e.Append(nil)
			b.SetBytes(int64(len(buf)))
			b.ReportAllocs()
			for b.Loop() {
				buf = e.Append(buf[:0])
			}
			b.ReportMetric(float64(slow)/float64(b.Elapsed())*float64(b.N), "x-encoding/xml")
		})
	}
}

// each returns the time that one of n runs takes.
func each(b *testing.B, n int, f func() error) time.Duration {
	start := time.Now()
	for range n {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / time.Duration(n)
}

// encode writes e with encoding/xml.
func encode(x *xml.Encoder, e *Element) error {
	start := xml.StartElement{Name: xml.Name{Space: e.namespace(), Local: e.Name}}
	for _, a := range e.Attrs {
		start.Attr = append(start.Attr, xml.Attr{Name: xml.Name{Local: a.Name}, Value: a.Value})
	}
	if err := x.EncodeToken(start); err != nil {
		return err
	}
	for _, n := range e.Nodes {
		if n.Element == nil {
			if err := x.EncodeToken(xml.CharData(n.Text)); err != nil {
				return err
			}
		} else if err := encode(x, n.Element); err != nil {
			return err
		}
	}
	if err := x.EncodeToken(start.End()); err != nil {
		return err
	}
	return x.Flush()
}
