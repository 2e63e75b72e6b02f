package main

import (
	"strings"
	"testing"

	"plenum/signaling/client"
)

// TestSenderLimit: --max-video-senders is in force, and the room is told when it is reached.
func TestSenderLimit(t *testing.T) {
	shard := startDev(t, func(o *devOptions) { o.maxVideo = 2 })
	all := joinRoom(t, shard.HTTP, "limited", 3, 0) // two of them send pictures
	for _, p := range all {
		await(t, p, mediaLimit, "is told that there are no more pictures", func(s client.Stats) bool {
			focus := s.Members["focus"].Presence
			return focus != nil && strings.Contains(focus.String(), "key='video-limit-reached' value='true'")
		})
	}
}
