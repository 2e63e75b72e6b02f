package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A source is one Go file of the tree, seen from the module's root.
type source struct {
	path    string // "bridge/ice/agent.go"
	folder  string // "bridge/ice", "." for package main
	imports []string
	doc     bool // has a package comment
	test    bool
}

func (s source) room() string { return strings.SplitN(s.folder, "/", 2)[0] }

// in reports whether s lies in one of the folders or below it.
func (s source) in(folders ...string) bool {
	return slices.ContainsFunc(folders, func(f string) bool {
		return s.folder == f || strings.HasPrefix(s.folder, f+"/")
	})
}

func sources(t *testing.T) []source {
	var all []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case path == "tools": // modules of their own
			return filepath.SkipDir
		case filepath.Ext(path) != ".go":
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(path), folder: filepath.ToSlash(filepath.Dir(path)),
			doc: f.Doc != nil, test: strings.HasSuffix(path, "_test.go")}
		if ast.IsGenerated(f) || ignored(f) {
			return nil
		}
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, name)
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ignored reports whether a file is left out of every build (go generate's helpers).
func ignored(f *ast.File) bool {
	return len(f.Comments) > 0 && strings.HasPrefix(f.Comments[0].List[0].Text, "//go:build ignore")
}

// forbidden says why s may not import name, or nothing. It is the import rule of docs/ARCHITECTURE.md.
func forbidden(s source, name string) string {
	main := s.folder == "."
	std := !strings.Contains(strings.SplitN(name, "/", 2)[0], ".") && !strings.HasPrefix(name, "plenum")
	switch inner, plenum := strings.CutPrefix(name, "plenum/"); {
	case std:
	case s.room() == "wire" && !s.test && !strings.HasPrefix(name, "plenum/wire/") &&
		!strings.HasPrefix(name, "golang.org/x/text/") && name != "mellium.im/sasl":
		return "wire imports the standard library, golang.org/x/text and mellium.im/sasl only"
	case plenum:
		target := strings.SplitN(inner, "/", 2)[0]
		switch {
		case main || target == s.room():
		case s.test && (strings.HasPrefix(inner, "overlay/netlab") || strings.HasPrefix(inner, "signaling/client")):
		case s.room() == "agent" && target == "overlay":
		case target != "wire":
			return "rooms do not import each other"
		case s.room() == "bridge" && !s.test && !slices.Contains(translators, s.path):
			return "only " + strings.Join(translators, ", ") + " know the wire; the engine does not"
		}
	case strings.HasPrefix(name, "github.com/pion/") && !s.test && !main:
		if s.in("bridge/ice") && strings.HasPrefix(name, "github.com/pion/stun/") || s.in("bridge/transport", "signaling/client") {
			return ""
		}
		return "pion is for bridge/ice (stun), bridge/transport and signaling/client"
	case strings.HasPrefix(name, "github.com/hashicorp/") && !main &&
		!s.in("agent", "signaling/rooms", "signaling/fleet", "signaling/edge", "overlay/roster", "jobs"):
		return "HashiCorp's clients stay behind the rooms that need them"
	}
	return ""
}

// translators are the bridge's files that turn what the wire says into calls of the engine and back.
var translators = []string{"bridge/control.go", "bridge/channel.go", "bridge/xmpp.go", "bridge/http.go", "bridge/paths.go"}

func TestImportRule(t *testing.T) {
	for _, s := range sources(t) {
		for _, name := range s.imports {
			if why := forbidden(s, name); why != "" {
				t.Errorf("%s imports %s: %s", s.path, name, why)
			}
		}
	}
}

// TestImportRuleRefuses holds the rule itself to what it should refuse.
func TestImportRuleRefuses(t *testing.T) {
	for _, test := range []struct {
		path, name string
		refused    bool
	}{
		{"bridge/ice/agent.go", "plenum/wire/xmpp", true},
		{"bridge/ice/agent.go", "github.com/pion/stun/v3", false},
		{"bridge/ice/agent.go", "github.com/pion/dtls/v3", true},
		{"bridge/conference/leg.go", "github.com/pion/rtp", true},
		{"bridge/conference/leg_test.go", "github.com/pion/rtp", false},
		{"bridge/control.go", "plenum/wire/colibri", false},
		{"bridge/core.go", "plenum/wire/colibri", true},
		{"bridge/control.go", "plenum/signaling", true},
		{"signaling/actor.go", "plenum/bridge", true},
		{"signaling/actor.go", "plenum/wire/jid", false},
		{"signaling/actor.go", "github.com/hashicorp/consul/api", true},
		{"signaling/rooms/consul.go", "github.com/hashicorp/consul/api", false},
		{"bridge/bridge_test.go", "plenum/signaling/client", false},
		{"agent/host/host.go", "plenum/overlay", false},
		{"overlay/overlay.go", "plenum/agent", true},
		{"wire/jid/jid.go", "golang.org/x/text/secure/precis", false},
		{"wire/xmpp/parse.go", "github.com/gorilla/websocket", true},
		{"dev.go", "plenum/bridge", false},
	} {
		s := source{path: test.path, folder: filepath.Dir(test.path), test: strings.HasSuffix(test.path, "_test.go")}
		if why := forbidden(s, test.name); (why != "") != test.refused {
			t.Errorf("%s importing %s: %q, want refused = %t", test.path, test.name, why, test.refused)
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if !s.test {
			documented[s.folder] = documented[s.folder] || s.doc
		}
	}
	for folder, ok := range documented {
		if !ok {
			t.Errorf("%s: no file has a package comment", folder)
		}
	}
}
