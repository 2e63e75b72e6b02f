//go:build ignore

// Command generate makes the web client's dist from its src with esbuild, in the folder it is run in
// (go generate runs it in signaling/web).
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"plenum/signaling/web/bundle"
)

func main() {
	files, err := bundle.Files("src")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bundle:", err)
		os.Exit(1)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join("dist", name), content, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "bundle:", err)
			os.Exit(1)
		}
	}
}
