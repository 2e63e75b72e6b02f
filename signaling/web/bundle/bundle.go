// Package bundle bundles the web client. Only go generate and a test use it, so the bundler itself
// is not part of the binary.
package bundle

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/evanw/esbuild/pkg/api"
)

// Files returns the files of the client's dist by name, made from the folder src.
func Files(src string) (map[string][]byte, error) {
	result := api.Build(api.BuildOptions{
		EntryPoints:       []string{filepath.Join(src, "main.ts")},
		Bundle:            true,
		Format:            api.FormatESModule,
		Target:            api.ES2022,
		MinifyWhitespace:  true,
		MinifySyntax:      true,
		Outdir:            "dist",
		Charset:           api.CharsetUTF8,
		LegalComments:     api.LegalCommentsNone,
		MinifyIdentifiers: false,
	})
	var errs []error
	for _, m := range result.Errors {
		errs = append(errs, errors.New(m.Text))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	files := map[string][]byte{}
	for _, f := range result.OutputFiles {
		files[filepath.Base(f.Path)] = f.Contents
	}
	for _, name := range []string{"index.html", "style.css"} {
		content, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			return nil, err
		}
		files[name] = content
	}
	return files, nil
}
