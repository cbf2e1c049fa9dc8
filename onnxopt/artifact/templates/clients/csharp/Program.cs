// Repeat the golden cases of an artifact in ONNX Runtime for .NET.
//
//     dotnet run [DIR]        the artifact; ../.. when not given
//
// Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

using System.Globalization;
using System.Runtime.InteropServices;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

var folder = args.Length > 0 ? args[0] : Path.Combine("..", "..");
try
{
    return Client.Run(folder);
}
catch (Exception error) when (error is IOException or OnnxRuntimeException or FormatException or NotSupportedException)
{
    Console.Error.WriteLine($"unusable: {error.Message}");
    return 2;
}

internal sealed record Entry(string Name, string Type, string File, long[] Shape, double Limit);

internal sealed record Case(List<Entry> Inputs, List<Entry> Outputs);

internal static class Client
{
    private static readonly Dictionary<string, (TensorElementType Type, int Size)> Types = new()
    {
        ["float32"] = (TensorElementType.Float, 4), ["float64"] = (TensorElementType.Double, 8),
        ["float16"] = (TensorElementType.Float16, 2), ["int8"] = (TensorElementType.Int8, 1),
        ["uint8"] = (TensorElementType.UInt8, 1), ["int16"] = (TensorElementType.Int16, 2),
        ["uint16"] = (TensorElementType.UInt16, 2), ["int32"] = (TensorElementType.Int32, 4),
        ["uint32"] = (TensorElementType.UInt32, 4), ["int64"] = (TensorElementType.Int64, 8),
        ["uint64"] = (TensorElementType.UInt64, 8), ["bool"] = (TensorElementType.Bool, 1),
    };

    public static int Run(string folder)
    {
        var cases = ReadCases(Path.Combine(folder, "clients", "csharp", "golden.tsv"));
        using var session = new InferenceSession(Path.Combine(folder, "model.onnx"));
        using var options = new RunOptions();
        var worst = 0.0;
        var compared = 0;
        for (var number = 0; number < cases.Count; number++)
        {
            var one = cases[number];
            var names = one.Inputs.Select(entry => entry.Name).ToArray();
            var outputs = one.Outputs.Select(entry => entry.Name).ToArray();
            var pinned = new List<GCHandle>();
            var values = new List<OrtValue>();
            try
            {
                foreach (var entry in one.Inputs)
                {
                    var bytes = Read(folder, entry);
                    var handle = GCHandle.Alloc(bytes, GCHandleType.Pinned);
                    pinned.Add(handle);
                    values.Add(OrtValue.CreateTensorValueWithData(
                        OrtMemoryInfo.DefaultInstance, Types[entry.Type].Type, entry.Shape,
                        handle.AddrOfPinnedObject(), bytes.Length));
                }
                using var results = session.Run(options, names, values, outputs);
                for (var index = 0; index < one.Outputs.Count; index++)
                {
                    var entry = one.Outputs[index];
                    var info = results[index].GetTensorTypeAndShape();
                    if (!info.Shape.SequenceEqual(entry.Shape) || info.ElementDataType != Types[entry.Type].Type)
                    {
                        Console.WriteLine($"differs: case {number}, output {entry.Name} has another shape or type");
                        return 1;
                    }
                    var expected = Read(folder, entry);
                    var got = results[index].GetTensorMutableRawData();
                    for (var place = 0; place < expected.Length / Types[entry.Type].Size; place++)
                    {
                        var a = Element(entry.Type, expected, place);
                        var b = Element(entry.Type, got, place);
                        if (a == b || (double.IsNaN(a) && double.IsNaN(b))) continue;
                        if (!(Math.Abs(a - b) <= entry.Limit))
                        {
                            Console.WriteLine(
                                $"differs: case {number}, output {entry.Name} at {place} is {b}, expected {a} within {entry.Limit}");
                            return 1;
                        }
                        worst = Math.Max(worst, Math.Abs(a - b));
                    }
                    compared++;
                }
            }
            finally
            {
                values.ForEach(value => value.Dispose());
                pinned.ForEach(handle => handle.Free());
            }
        }
        Console.WriteLine($"equal: {cases.Count} cases, {compared} outputs, worst absolute error {worst:E2}");
        return 0;
    }

    private static List<Case> ReadCases(string path)
    {
        var cases = new List<Case>();
        foreach (var line in File.ReadLines(path))
        {
            var parts = line.Split('\t');
            if (parts[0] == "case")
            {
                cases.Add(new Case([], []));
                continue;
            }
            if (parts.Length < 5 || cases.Count == 0) throw new FormatException($"{path} is malformed: {line}");
            var shape = parts[4].Split(',', StringSplitOptions.RemoveEmptyEntries).Select(long.Parse).ToArray();
            if (!Types.ContainsKey(parts[2])) throw new NotSupportedException($"{parts[1]}: no tensor of {parts[2]}");
            var output = parts[0] == "output";
            var limit = output ? double.Parse(parts[5], CultureInfo.InvariantCulture) : 0;
            (output ? cases[^1].Outputs : cases[^1].Inputs).Add(new Entry(parts[1], parts[2], parts[3], shape, limit));
        }
        return cases.Count > 0 ? cases : throw new FormatException($"{path} holds no cases");
    }

    private static byte[] Read(string folder, Entry entry)
    {
        var bytes = File.ReadAllBytes(Path.Combine(folder, "golden", entry.File));
        var count = entry.Shape.Aggregate(1L, (product, size) => product * size);
        return bytes.Length == count * Types[entry.Type].Size
            ? bytes
            : throw new FormatException($"{entry.File} has another size than its tensor");
    }

    private static double Element(string type, ReadOnlySpan<byte> data, int place) => type switch
    {
        "float32" => MemoryMarshal.Cast<byte, float>(data)[place],
        "float64" => MemoryMarshal.Cast<byte, double>(data)[place],
        "float16" => (double)MemoryMarshal.Cast<byte, Half>(data)[place],
        "int64" => MemoryMarshal.Cast<byte, long>(data)[place],
        "uint64" => MemoryMarshal.Cast<byte, ulong>(data)[place],
        "int32" => MemoryMarshal.Cast<byte, int>(data)[place],
        "uint32" => MemoryMarshal.Cast<byte, uint>(data)[place],
        "int16" => MemoryMarshal.Cast<byte, short>(data)[place],
        "uint16" => MemoryMarshal.Cast<byte, ushort>(data)[place],
        "int8" => (sbyte)data[place],
        _ => data[place],
    };
}
