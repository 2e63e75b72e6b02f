package site

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const build = "testdata/build"

func open(t *testing.T, dir string) *Site {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// get asks for a file as a browser does that has headers to say, in pairs; nil means that there is none.
func get(s *Site, url string, headers ...string) *http.Response {
	r := httptest.NewRequest("GET", "http://meet.example/"+url, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	name, _, _ := strings.Cut(url, "?")
	if !s.File(w, r, name, func() Values { return Values{Config: []byte("var config = {};"), Tenant: "school"} }) {
		return nil
	}
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	if r == nil {
		t.Fatal("there is no such file")
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPage(t *testing.T) {
	s := open(t, build)
	r := get(s, "index.html")
	text := body(t, r)
	for _, want := range []string{
		`<meta name="author"`, `<base href="" />`, `<script>var config = {};</script><!-- an ordinary comment stays -->`,
		`APP_NAME: "Stand-in"`, `<title>Stand-in</title>`, `data-tenant="school."`, `<p id="note">two folders down</p>`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s\n%s", want, text)
		}
	}
	if strings.Contains(text, "<!--#") {
		t.Errorf("a directive is left in the page\n%s", text)
	}
	if r.Header.Get("Content-Type") != "text/html; charset=utf-8" || r.Header.Get("Cache-Control") != "no-cache" {
		t.Errorf("headers: %v", r.Header)
	}
	if again := get(s, "index.html", "If-None-Match", r.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("the same page again: %d", again.StatusCode)
	}
	z := get(s, "index.html", "Accept-Encoding", "br, gzip")
	d, err := gzip.NewReader(z.Body)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(d); err != nil || string(plain) != text || z.Header.Get("ETag") == r.Header.Get("ETag") {
		t.Errorf("compressed: %v, another page or the same tag: %v", err, z.Header)
	}
	if text := body(t, get(s, "static/close.html")); !strings.Contains(text, "Stand-in") {
		t.Errorf("pages beside the first have no includes: %s", text)
	}
}

func TestFile(t *testing.T) {
	s := open(t, build)
	for _, tt := range []struct{ url, kind, caching string }{
		{"libs/app.bundle.min.js?v=1", "application/javascript; charset=utf-8", "public, max-age=31536000, immutable"},
		{"libs/external_api.min.js", "application/javascript; charset=utf-8", "no-cache"},
		{"css/all.css", "text/css; charset=utf-8", "no-cache"},
		{"lang/main.json", "application/json", "no-cache"},
		{"images/watermark.svg", "image/svg+xml", "public, max-age=86400"},
		{"sounds/joined.wav", "audio/wav", "public, max-age=86400"},
		{"fonts/any.woff2", "font/woff2", "public, max-age=86400"},
		{"manifest.json", "application/json", "no-cache"},
	} {
		r := get(s, tt.url)
		text := body(t, r)
		name, _, _ := strings.Cut(tt.url, "?")
		want, err := os.ReadFile(filepath.Join(build, name))
		if err != nil || text != string(want) {
			t.Errorf("%s: %v, %q, want %q", tt.url, err, text, want)
		}
		h := r.Header
		if h.Get("Content-Type") != tt.kind || h.Get("Cache-Control") != tt.caching || h.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: %v", tt.url, h)
		}
		if again := get(s, tt.url, "If-None-Match", h.Get("ETag")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %d", tt.url, again.StatusCode)
		}
		z := get(s, tt.url, "Accept-Encoding", "gzip")
		if zipped := z.Header.Get("Content-Encoding") == "gzip"; zipped != compressible(name) {
			t.Errorf("%s: compressed %v", tt.url, zipped)
		} else if zipped {
			d, err := gzip.NewReader(z.Body)
			if err != nil {
				t.Fatal(err)
			}
			if plain, err := io.ReadAll(d); err != nil || string(plain) != text {
				t.Errorf("%s: unpacks to %q, %v", tt.url, plain, err)
			}
		}
	}
	if r := get(s, "css/all.css", "Range", "bytes=0-3"); r.StatusCode != http.StatusPartialContent || body(t, r) != "body" {
		t.Errorf("a part: %d", r.StatusCode)
	}
}

// TestOutside: nothing but the build's own regular files is served.
func TestOutside(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, "secret.txt", "secret")
	write(t, dir, "index.html", `<!--#include virtual="../secret.txt" --><!--#include virtual="/../../secret.txt" --><!--#include file="libs/link.txt" --><!--#include virtual="libs" -->`)
	write(t, dir, "libs/a.js", "1")
	write(t, dir, ".git/config", "secret")
	write(t, dir, "libs/.env", "secret")
	write(t, dir, ".well-known/assetlinks.json", "[]")
	for _, l := range [][2]string{{filepath.Join(outside, "secret.txt"), "libs/link.txt"}, {outside, "libs/folder"}, {"../../../../../../etc/passwd", "libs/up.txt"}, {"a.js", "libs/inside.js"}} {
		if err := os.Symlink(l[0], filepath.Join(dir, l[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "libs/pipe.js"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	for _, name := range []string{
		"", ".", "..", "../" + filepath.Base(outside) + "/secret.txt", "libs", "libs/", "libs/../index.html", "/index.html", "libs//a.js",
		"libs/link.txt", "libs/folder/secret.txt", "libs/up.txt", ".git/config", "libs/.env", ".well-known/../.git/config", "libs/pipe.js",
		`libs\a.js`, "libs/a.js\x00", "libs/none.js", "missing.html", "libs/a.js/x",
	} {
		r := httptest.NewRequest("GET", "http://meet.example/", nil)
		if w := httptest.NewRecorder(); s.File(w, r, name, func() Values { return Values{} }) {
			t.Errorf("%q: %d %q", name, w.Code, w.Body)
		}
	}
	if text := body(t, get(s, "index.html")); text != "" {
		t.Errorf("a page includes %q", text)
	}
	for _, name := range []string{"libs/inside.js", ".well-known/assetlinks.json"} {
		if r := get(s, name); r == nil || r.StatusCode != 200 {
			t.Errorf("%s is not served", name)
		}
	}
}

func TestIncludeLimits(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "libs/a.js", "")
	write(t, dir, "index.html", `<!--#include virtual="index.html" -->`)
	write(t, dir, "wide.html", strings.Repeat(`<!--#include virtual="libs/a.js" -->`, maxIncludes+1))
	write(t, dir, "enough.html", strings.Repeat(`<!--#include virtual="libs/a.js" -->`, maxIncludes))
	write(t, dir, "large.html", strings.Repeat(`<!--#include virtual="some.html" -->`, 5))
	write(t, dir, "some.html", strings.Repeat("x", maxPage/4))
	write(t, dir, "huge.html", `<!--#include virtual="huge.txt" -->`)
	write(t, dir, "huge.txt", strings.Repeat("x", maxPage+1))
	write(t, dir, "open.html", `a<!--#include virtual="libs/a.js"`)
	write(t, dir, "odd.html", `a<!--#--><!--#include --><!--#set var="x" value="y" --><!--#echo var="HTTP_COOKIE" default="none" -->b`)
	s := open(t, dir)
	for name, code := range map[string]int{"index.html": 500, "wide.html": 500, "enough.html": 200, "large.html": 500, "huge.html": 500} {
		if r := get(s, name); r == nil || r.StatusCode != code {
			t.Errorf("%s: %v, want %d", name, r, code)
		}
	}
	for name, want := range map[string]string{"open.html": `a<!--#include virtual="libs/a.js"`, "odd.html": "anoneb"} {
		if got := body(t, get(s, name)); got != want {
			t.Errorf("%s becomes %q, want %q", name, got, want)
		}
	}
	if text := body(t, get(s, "interface_config.js")); text != "var interfaceConfig = {};\n" {
		t.Errorf("a build without interface_config.js: %q", text)
	}
}

// TestLarge: large files are streamed, not compressed; what is kept compressed stays within its budget.
func TestLarge(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "index.html", "")
	write(t, dir, "libs/large.wasm", "")
	if err := os.Truncate(filepath.Join(dir, "libs/large.wasm"), maxZipBytes+1); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if r := get(s, "libs/large.wasm", "Accept-Encoding", "gzip", "Range", "bytes=5-6"); r.Header.Get("Content-Encoding") != "" || len(body(t, r)) != 2 {
		t.Errorf("large file: %v", r.Header)
	}
	for i, want := range []int{1, 2} {
		name := fmt.Sprintf("libs/%d.js", i)
		write(t, dir, name, strings.Repeat("x", 1000))
		get(s, name, "Accept-Encoding", "gzip")
		if len(s.zip.files) != want {
			t.Errorf("%d files kept, want %d", len(s.zip.files), want)
		}
	}
	s.zip.bytes = 2 * zipBudget // as if it were used up
	write(t, dir, "libs/2.js", "y")
	get(s, "libs/2.js", "Accept-Encoding", "gzip")
	if len(s.zip.files) != 1 {
		t.Errorf("%d files kept over the budget", len(s.zip.files))
	}
	// A file that has changed is another.
	before := get(s, "libs/2.js", "Accept-Encoding", "gzip").Header.Get("ETag")
	write(t, dir, "libs/2.js", "longer")
	if r := get(s, "libs/2.js", "Accept-Encoding", "gzip", "If-None-Match", before); r.StatusCode != 200 {
		t.Errorf("a changed file: %d", r.StatusCode)
	}
}

func TestOpenRefuses(t *testing.T) {
	if s, err := Open(t.TempDir()); !errors.Is(err, ErrNoBuild) {
		t.Errorf("an empty folder: %v, %v", s, err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestAcceptsGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "br, gzip;q=0.5": true, "deflate, *": true, "gzip;q=0": false, "GZIP; q=1": true, "gzip;q=x": false, "x-gzip": false,
	} {
		if acceptsGzip(header) != want {
			t.Errorf("%q: %v", header, !want)
		}
	}
}

// FuzzIncludes: no page, whatever it includes, breaks a limit or shows what lies outside.
func FuzzIncludes(f *testing.F) {
	f.Add(`<!--#include virtual="/index.html" -->`, "libs/a.js")
	f.Add(`<!--#include virtual="../../etc/passwd" --><!--#echo var='subdir'-->`, "../x")
	f.Add(`<!--#include file='libs/a.js'`, "a\x00b")
	dir := f.TempDir()
	for name, text := range map[string]string{"b/index.html": "i", "b/libs/a.js": "a", "secret": "secret"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	s, err := Open(filepath.Join(dir, "b"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		p := render{site: s}
		err := p.include("index.html", []byte(text), 0)
		if err == nil && (p.out.Len() > maxPage+len(text) || !strings.Contains(text, "secret") && strings.Contains(p.out.String(), "secret")) {
			t.Errorf("%q becomes %q", text, p.out.String())
		}
		if r, info, err := s.stat(name); err == nil {
			r.Close()
			if !info.Mode().IsRegular() || strings.Contains(name, "..") {
				t.Errorf("%q is served", name)
			}
		}
	})
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
