package site

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"
)

// Limits of one page: how deep includes go, how many there are, how many bytes it becomes.
const (
	maxDepth    = 8
	maxIncludes = 64
	maxPage     = 1 << 20
)

// ErrIncludes says that a page has too many includes, too deep ones, or becomes too large.
var ErrIncludes = errors.New("too many includes, too deep ones or too large a page")

// page serves a page with its includes filled in. It reports whether there is such a page.
func (s *Site) page(w http.ResponseWriter, r *http.Request, name string, values func() Values) bool {
	text, err := s.read(name)
	if err != nil {
		return false
	}
	p := render{site: s, values: values()}
	if err := p.include(name, text, 0); err != nil {
		http.Error(w, name+": "+err.Error(), http.StatusInternalServerError)
		return true
	}
	out := p.out.Bytes()
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Cache-Control", "no-cache")
	h.Add("Vary", "Accept-Encoding")
	tag := fmt.Sprintf("%x", sha256.Sum256(out))[:32]
	if acceptsGzip(r.Header.Get("Accept-Encoding")) {
		if z, err := compress(bytes.NewReader(out), gzip.BestSpeed); err == nil {
			h.Set("Content-Encoding", "gzip")
			tag, out = tag+"-gz", z
		}
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(out))
	return true
}

// read returns a file that is part of a page.
func (s *Site) read(name string) ([]byte, error) {
	f, info, err := s.stat(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > maxPage {
		return nil, ErrIncludes
	}
	return io.ReadAll(io.LimitReader(f, maxPage))
}

// A render is one page in the making.
type render struct {
	site     *Site
	values   Values
	out      bytes.Buffer
	includes int
}

// include appends a file's text with its directives carried out. What is included and missing is left out:
// builds have places where a deployment may put something.
func (p *render) include(name string, text []byte, depth int) error {
	for {
		before, rest, found := bytes.Cut(text, []byte("<!--#"))
		inside, after, closed := bytes.Cut(rest, []byte("-->"))
		if !found || !closed {
			before, after = text, nil
		}
		if p.out.Len()+len(before) > maxPage {
			return ErrIncludes
		}
		p.out.Write(before)
		if !found || !closed {
			return nil
		}
		if err := p.directive(name, string(inside), depth); err != nil {
			return err
		}
		text = after
	}
}

var attribute = regexp.MustCompile(`([a-z]+)=(?:"([^"]*)"|'([^']*)')`)

// directive carries out one: include virtual="…" (or file="…"), echo var="…" default="…" of the tenant's
// names. Others are left out.
func (p *render) directive(from, text string, depth int) error {
	given := map[string]string{}
	for _, m := range attribute.FindAllStringSubmatch(text, 8) {
		given[m[1]] = m[2] + m[3]
	}
	verb, _, _ := strings.Cut(strings.TrimSpace(text), " ")
	switch verb {
	case "echo":
		value := given["default"]
		if t := p.values.Tenant; t != "" {
			switch given["var"] {
			case "subdomain":
				value = t + "."
			case "subdir":
				value = t + "/"
			case "prefix":
				value = t
			}
		}
		p.out.WriteString(value)
	case "include":
		target := given["virtual"] + given["file"]
		if i := strings.IndexAny(target, "?#"); i >= 0 {
			target = target[:i]
		}
		if target == "" {
			return nil
		}
		if !strings.HasPrefix(target, "/") {
			target = path.Dir("/"+from) + "/" + target
		}
		name := strings.TrimPrefix(path.Clean(target), "/")
		if p.includes++; p.includes > maxIncludes || depth == maxDepth {
			return fmt.Errorf("%s includes %s: %w", from, name, ErrIncludes)
		}
		if name == "config.js" {
			p.out.Write(p.values.Config)
			return nil
		}
		body, err := p.site.read(name)
		switch {
		case errors.Is(err, ErrIncludes):
			return fmt.Errorf("%s includes %s: %w", from, name, err)
		case err != nil:
			p.out.WriteString(defaults[name])
			return nil
		}
		return p.include(name, body, depth+1)
	}
	return nil
}
