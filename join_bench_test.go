package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"plenum/signaling/client"
)

// BenchmarkJoin has fifty headless participants come into one room, one after another, and measures from the call of
// Join to their own presence, and to the first packet of anybody's audio and frame of anybody's video. All are in one
// process beside the server.
func BenchmarkJoin(b *testing.B) {
	const n = 50
	for b.Loop() {
		shard := startDev(b)
		var joined, heard, seen []time.Duration
		for i := range n {
			p, err := client.Join(b.Context(), client.Config{URL: shard.HTTP, Room: "fifty", Name: fmt.Sprint("participant ", i), Rewriting: true,
				Send: client.Media{Audio: true, Video: i < 5}})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { p.Close() })
			if i == 0 {
				continue // nobody is there to be heard
			}
			await(b, p, mediaLimit, "hears and sees somebody", func(s client.Stats) bool {
				return !s.Marks.FirstAudio.IsZero() && !s.Marks.FirstVideo.IsZero()
			})
			m := p.Stats().Marks
			joined = append(joined, m.Joined.Sub(m.Started))
			heard = append(heard, m.FirstAudio.Sub(m.Started))
			seen = append(seen, m.FirstVideo.Sub(m.Started))
		}
		for name, all := range map[string][]time.Duration{"joined": joined, "heard": heard, "seen": seen} {
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1e3, name+"-p50-ms")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1e3, name+"-p99-ms")
		}
	}
}
