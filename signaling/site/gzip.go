package site

import (
	"bytes"
	"compress/gzip"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"
)

const (
	// maxZipBytes is the largest file that is compressed; larger ones are streamed as they are.
	maxZipBytes = 16 << 20
	// zipBudget bounds what is kept compressed, in bytes. A whole build takes less than a tenth of it.
	zipBudget = 64 << 20
)

// zipped keeps compressed files: the application is some megabytes, and compressing it costs a core as long
// as a fast client takes to fetch it.
type zipped struct {
	mu    sync.Mutex // held while compressing too: one core at most works on it
	files map[string]zipFile
	bytes int
}

type zipFile struct {
	tag  string // of what was compressed
	data []byte
}

// get returns the file called name, whose content is f, compressed.
func (z *zipped) get(name, tag string, f io.Reader) (*bytes.Reader, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if have, ok := z.files[name]; ok && have.tag == tag {
		return bytes.NewReader(have.data), nil
	}
	data, err := compress(f, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	z.drop(name)
	for other := range z.files {
		if z.bytes+len(data) <= zipBudget {
			break
		}
		z.drop(other)
	}
	if z.files == nil {
		z.files = map[string]zipFile{}
	}
	z.files[name] = zipFile{tag, data}
	z.bytes += len(data)
	return bytes.NewReader(data), nil
}

func (z *zipped) drop(name string) {
	z.bytes -= len(z.files[name].data)
	delete(z.files, name)
}

// compress reads at most maxZipBytes.
func compress(r io.Reader, level int) ([]byte, error) {
	out := new(bytes.Buffer)
	w, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(w, io.LimitReader(r, maxZipBytes)); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// compressible reports whether a file gets smaller by compressing; pictures, sounds and newer fonts do not.
func compressible(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".css", ".eot", ".html", ".ico", ".js", ".json", ".map", ".mjs", ".otf", ".svg", ".ttf", ".txt", ".wasm", ".webmanifest", ".xml":
		return true
	}
	return false
}

// acceptsGzip reads an Accept-Encoding header.
func acceptsGzip(header string) bool {
	for part := range strings.SplitSeq(header, ",") {
		coding, params, _ := strings.Cut(part, ";")
		if coding = strings.ToLower(strings.TrimSpace(coding)); coding != "gzip" && coding != "*" {
			continue
		}
		weight, given := strings.CutPrefix(strings.TrimSpace(params), "q=")
		q, err := strconv.ParseFloat(weight, 64)
		return !given || err == nil && q > 0
	}
	return false
}
