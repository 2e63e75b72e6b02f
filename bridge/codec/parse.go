package codec

// A Reader reads the packets of one encoding. The zero value is ready to use.
type Reader struct {
	dd        DescriptorReader
	timestamp uint32
	started   bool
}

// Read fills f from one packet: its codec, payload, dependency descriptor (nil without one), RTP timestamp.
// A packet that cannot be read is Plain.
func (r *Reader) Read(c Codec, payload, descriptor []byte, timestamp uint32, f *Frame) {
	ok := false
	if c == VP8 {
		ok = ParseVP8(payload, f)
	}
	if !ok {
		*f = Frame{Codec: c, Start: !r.started || timestamp != r.timestamp}
	}
	r.timestamp, r.started = timestamp, true
	if len(descriptor) == 0 || c == VP9 && f.Numbering != Plain {
		return
	}
	err := r.dd.Read(descriptor, &f.Descriptor)
	if err == ErrDescriptor {
		return
	}
	f.Numbering = ByDescriptor
	f.Start = f.Descriptor.Start
	if d := &f.Descriptor; err == nil {
		f.Key = f.Start && d.HasStructure && d.FDiffs == 0 && d.SID == 0
		if f.Height == 0 {
			f.Height = int(d.Height)
		}
	} else {
		d.Present, f.Key = 0xff, false
	}
}
