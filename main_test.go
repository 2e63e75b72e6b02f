package main

import (
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"plenum": main, "flood": flood, "participant": participant})
}

// TestScripts runs the stories in testdata/script over the real binary.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": awaitFile,
		},
	})
}

// awaitFile waits until a file exists: await FILE.
func awaitFile(s *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		s.Fatalf("usage: await FILE")
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(s.MkAbs(args[0])); err == nil {
			return
		}
	}
	s.Fatalf("%s has not appeared", args[0])
}
