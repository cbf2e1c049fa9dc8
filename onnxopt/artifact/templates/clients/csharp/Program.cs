// Repeat the golden cases and golden texts of an artifact in ONNX Runtime for .NET, or give it texts.
//
//     dotnet run [-- DIR [TEXT...]]    the artifact; ../.. when not given. A text with a tab in it is a pair.
//
// Exit code 0: every case is reproduced; 1: an output differs; 2: the artifact cannot be read or run.

using System.Globalization;
using System.Runtime.InteropServices;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

var folder = args.Length > 0 ? args[0] : Path.Combine("..", "..");
try
{
    return Client.Run(folder, args.Skip(1).ToArray());
}
catch (Exception error)
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

    public static int Run(string folder, string[] texts)
    {
        using var session = new InferenceSession(Path.Combine(folder, "model.onnx"));
        var code = texts.Length == 0 ? CheckTensors(session, folder) : 0;
        if (code != 0) return code;
        if (TextModel.Refusal(folder) is { } refusal)
        {
            Console.Error.WriteLine(refusal);
            return texts.Length == 0 ? 0 : 2;
        }
        var model = new TextModel(folder);
        foreach (var text in texts) Show(session, model, text);
        return texts.Length == 0 ? CheckTexts(session, model) : 0;
    }

    private static double[] Answer(InferenceSession session, TextModel model, Row row)
    {
        var names = model.Feeds.Select(feed => feed.Name).ToArray();
        var values = model.Feeds.Select(feed => Tensor(feed, model.Input(feed, row))).ToList();
        try
        {
            using var options = new RunOptions();
            using var results = session.Run(options, names, values, [model.Setting("output")]);
            var info = results[0].GetTensorTypeAndShape();
            var type = Types.First(entry => entry.Value.Type == info.ElementDataType).Key;
            var data = results[0].GetTensorMutableRawData();
            var first = new double[data.Length / Types[type].Size / info.Shape[0]];
            for (var place = 0; place < first.Length; place++) first[place] = Element(type, data, place);
            return model.Answer(row, first, (int)info.Shape[^1]);
        }
        finally
        {
            values.ForEach(value => value.Dispose());
        }
    }

    private static OrtValue Tensor(Feed feed, (long[] Shape, long[] Values) input) => feed.Type switch
    {
        "int64" => OrtValue.CreateTensorValueFromMemory(input.Values, input.Shape),
        "int32" => OrtValue.CreateTensorValueFromMemory(input.Values.Select(value => (int)value).ToArray(), input.Shape),
        "float32" => OrtValue.CreateTensorValueFromMemory(input.Values.Select(value => (float)value).ToArray(), input.Shape),
        "bool" => OrtValue.CreateTensorValueFromMemory(input.Values.Select(value => value != 0).ToArray(), input.Shape),
        _ => throw new NotSupportedException($"an input of text is {feed.Type}"),
    };

    private static int CheckTexts(InferenceSession session, TextModel model)
    {
        for (var number = 0; number < model.Cases.Count; number++)
        {
            var one = model.Cases[number];
            var row = model.RowOf(one.Text, one.Second, one.Bare);
            if (!row.Ids.SequenceEqual(one.Ids))
            {
                Console.WriteLine(
                    $"differs: text {number}: the tokenizer gives [{string.Join(",", row.Ids)}], expected [{string.Join(",", one.Ids)}]");
                return 1;
            }
            var found = model.Setting("answer") == "ids" ? [] : Answer(session, model, row);
            var near = found.Length == one.Expected.Length;
            for (var place = 0; near && place < found.Length; place++) near = Math.Abs(found[place] - one.Expected[place]) <= one.Limit;
            if (!near)
            {
                Console.WriteLine(
                    $"differs: text {number} gives [{string.Join(",", found)}], expected [{string.Join(",", one.Expected)}] within {one.Limit}");
                return 1;
            }
        }
        Console.WriteLine($"equal: {model.Cases.Count} texts, {model.Setting("answer")}");
        return 0;
    }

    private static void Show(InferenceSession session, TextModel model, string given)
    {
        if (model.Setting("answer") == "ids") throw new NotSupportedException("what the graph gives to text is not shown by this client");
        var parts = given.Split('\t', 2);
        var row = model.RowOf(parts[0], parts.Length > 1 ? parts[1] : "", bare: false);
        var found = Answer(session, model, row);
        Console.WriteLine(given);
        var tokens = model.Setting("answer") == "token_scores";
        var width = tokens ? found.Length / Math.Max(1, row.Ids.Length) : found.Length; // numbers per token, or of the text
        for (var place = 0; place < found.Length; place++)
        {
            var token = tokens ? $"{row.Ids[place / width]} " : "";
            var label = model.Named ? $"{model.Label(place % width)} " : "";
            Console.WriteLine($"  {token}{label}{found[place]}");
        }
    }

    private static int CheckTensors(InferenceSession session, string folder)
    {
        var cases = ReadCases(Path.Combine(folder, "clients", "csharp", "golden.tsv"));
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
