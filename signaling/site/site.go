// Package site serves an unpacked build of Jitsi Meet's web application as its own packages have web servers
// do: pages with their server-side includes, and the files beside them. It does not know rooms or tenants
// apart, and makes no config.js: its caller says what a path means and what the configuration is.
package site

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// A Site is one build on disk. It reads what it serves anew each time, so a build may be replaced while it runs.
type Site struct {
	root *os.Root
	zip  zipped
}

// ErrNoBuild says that a folder does not hold a build of the web application.
var ErrNoBuild = errors.New("no build of the Jitsi Meet web application: index.html and libs/ are missing")

// Open opens the build in dir. Nothing outside dir is ever served, by links neither.
func Open(dir string) (*Site, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s := &Site{root: root}
	libs, err := root.Stat("libs")
	if _, _, missing := s.stat("index.html"); missing != nil || err != nil || !libs.IsDir() {
		root.Close()
		return nil, fmt.Errorf("%s: %w", dir, ErrNoBuild)
	}
	return s, nil
}

// Close gives the folder back.
func (s *Site) Close() error { return s.root.Close() }

// Values are what pages are filled in with.
type Values struct {
	// Config stands for config.js, which no build has.
	Config []byte
	// Tenant is the first part of the page's path, if it has two; a host name's label, or empty.
	Tenant string
}

// defaults stand for files that a page cannot do without and that some builds lack.
var defaults = map[string]string{"interface_config.js": "var interfaceConfig = {};\n"}

// File serves a file by its path below the build's root, pages with their includes. It reports whether there
// is one; if not, nothing has been written. The configuration is asked for when a page includes it.
func (s *Site) File(w http.ResponseWriter, r *http.Request, name string, values func() Values) bool {
	if path.Ext(name) == ".html" {
		return s.page(w, r, name, values)
	}
	f, info, err := s.stat(name)
	if err != nil {
		text, ok := defaults[name]
		if ok {
			w.Header().Set("Content-Type", contentType(name))
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeContent(w, r, name, time.Time{}, strings.NewReader(text))
		}
		return ok
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Cache-Control", caching(name, r.URL.Query().Has("v")))
	h.Set("Access-Control-Allow-Origin", "*")
	allow(w, info.Size())
	tag := fmt.Sprintf("%x-%x", info.ModTime().UnixNano(), info.Size())
	if compressible(name) && info.Size() <= maxZipBytes {
		h.Add("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header.Get("Accept-Encoding")) {
			if z, err := s.zip.get(name, tag, f); err == nil {
				h.Set("Content-Encoding", "gzip")
				h.Set("ETag", `"`+tag+`-gz"`)
				http.ServeContent(w, r, name, info.ModTime(), z)
				return true
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return false
			}
		}
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, name, info.ModTime(), f)
	return true
}

// stat opens a regular file below the root. Hidden files are none, but for /.well-known/. The file is opened
// without waiting, since a pipe would never open.
func (s *Site) stat(name string) (*os.File, fs.FileInfo, error) {
	if !fs.ValidPath(name) || strings.Contains(name, "\\") || strings.Contains("/"+strings.TrimPrefix(name, ".well-known/"), "/.") {
		return nil, nil, fs.ErrNotExist
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// allow gives a slow client time for size bytes: a minute, and what 32 kB a second take besides.
func allow(w http.ResponseWriter, size int64) {
	limit := time.Minute + time.Duration(size/32_000)*time.Second
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(limit)) // a recorder in a test has none
}

// types are those of a build's files. The system's own table would differ from host to host, and browsers
// take scripts, styles and WebAssembly by their type alone.
var types = map[string]string{
	".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "application/javascript; charset=utf-8",
	".json": "application/json", ".map": "application/json", ".mjs": "application/javascript; charset=utf-8",
	".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json",
	".xml": "application/xml",
	".eot": "application/vnd.ms-fontobject", ".otf": "font/otf", ".ttf": "font/ttf", ".woff": "font/woff", ".woff2": "font/woff2",
	".gif": "image/gif", ".ico": "image/x-icon", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
	".m4a": "audio/mp4", ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav", ".webm": "video/webm",
}

func contentType(name string) string {
	if t, ok := types[strings.ToLower(path.Ext(name))]; ok {
		return t
	}
	return "application/octet-stream"
}

// caching is for how long browsers may keep a file without asking. What a page names with a version is another
// file in the next build; scripts, styles and languages must fit together; the rest may be a day old.
func caching(name string, versioned bool) string {
	folder, _, _ := strings.Cut(name, "/")
	switch {
	case versioned:
		return "public, max-age=31536000, immutable"
	case folder == "fonts" || folder == "images" || folder == "sounds":
		return "public, max-age=86400"
	}
	return "no-cache"
}
