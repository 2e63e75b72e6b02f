package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"

	"plenum/signaling/handover"
)

// readShards reads the list of a cluster's shards, which Nomad renders from the catalogue and which stays when
// the catalogue is gone. A line is one shard, # begins a comment:
//
//	NAME REGION HTTP-ADDR:PORT XMPP-ADDR:PORT
//
// A region of - is none. Of a shard that is there twice the first line counts: the catalogue may not have forgotten what was
// replaced. Errors name file and line.
func readShards(path string) ([]handover.Shard, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--shards-file: %w", err)
	}
	var all []handover.Shard
	seen := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 4 {
			return nil, fmt.Errorf("%s:%d: want NAME REGION HTTP-ADDR:PORT XMPP-ADDR:PORT", path, n)
		}
		for _, a := range f[2:] {
			if err := checkAddress(a); err != nil {
				return nil, fmt.Errorf("%s:%d: %s: want ADDR:PORT: %w", path, n, a, err)
			}
		}
		if seen[f[0]] {
			continue
		}
		seen[f[0]] = true
		s := handover.Shard{Name: f[0], HTTP: f[2], XMPP: f[3]}
		if f[1] != "-" {
			s.Region = f[1]
		}
		all = append(all, s)
	}
	return all, lines.Err()
}
