package gossip

// For the fuzz targets.
var (
	DecodeMeta  = decodeMeta
	DecodeState = decodeState
	EncodeState = encodeState
	EncodeMeta  = Self.encode
)
