// pod 'TensorFlowLiteSwift'; MODEL_FILE lies in the app's bundle
import Foundation
import TensorFlowLite

struct Classifier {
    let content: Data
    let interpreter: Interpreter

    init() throws {
        let path = Bundle.main.path(forResource: "MODEL_STEM", ofType: "tflite")!
        content = try Data(contentsOf: URL(fileURLWithPath: path))
        interpreter = try Interpreter(modelPath: path)
        try interpreter.allocateTensors()
    }

    /// One score a class of HEIGHT x WIDTH RGB pixels as they are, three bytes each.
    func scores(_ rgb: [UInt8]) throws -> [Float] {
        try interpreter.copy(PIXELS_AS_DATA, toInputAt: 0)
        try interpreter.invoke()
        let output = try interpreter.output(at: 0)
        SWIFT_STEPS
        return SCORES_OF_DATA
    }

    /// The file's labels, manifest and test stand behind the model as a zip that is not compressed.
    func inside(_ name: String) -> Data? {
        func number(_ at: Int, _ count: Int) -> Int { (0..<count).reduce(0) { $0 | Int(content[at + $1]) << (8 * $1) } }
        var end = content.count - 22
        while number(end, 4) != 0x0605_4b50 { end -= 1 }
        let size = number(end + 12, 4)
        var at = end - size
        let shift = at - number(end + 16, 4)  // of offsets, where something stands before the zip
        while at < end {
            let long = number(at + 28, 2)
            if String(decoding: content[(at + 46)..<(at + 46 + long)], as: UTF8.self) == name {
                let local = shift + number(at + 42, 4)
                let start = local + 30 + number(local + 26, 2) + number(local + 28, 2)
                return content.subdata(in: start..<(start + number(at + 24, 4)))
            }
            at += 46 + long + number(at + 30, 2) + number(at + 32, 2)
        }
        return nil
    }

    struct Test: Decodable {
        struct Picture: Decodable { let pixels: Data, classes: [Int], scores: [Float] }
        let factor: Int, width: Int, tolerance: Float, pictures: [Picture]
    }

    func selfTest() throws -> String {
        let test = try JSONDecoder().decode(Test.self, from: inside("golden.json")!)
        let start = Date()
        let agreeing = try test.pictures.filter { picture in
            let rgb = (0..<(3 * HEIGHT * WIDTH)).map { i in
                let (y, x) = (i / 3 / WIDTH / test.factor, i / 3 % WIDTH / test.factor)
                return picture.pixels[3 * (y * test.width + x) + i % 3]
            }
            let answer = try scores(rgb)
            let best = answer.indices.max { answer[$0] < answer[$1] }
            return best == picture.classes[0]
                && zip(picture.classes, picture.scores).allSatisfy { abs(answer[$0] - $1) <= test.tolerance }
        }.count
        let each = Date().timeIntervalSince(start) * 1000 / Double(test.pictures.count)
        return "this phone: \(agreeing) of \(test.pictures.count) agree, " + String(format: "%.1f ms", each)
    }
}
